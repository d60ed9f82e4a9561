"""A server's outputs: for each a process that reads the server as any client does, and sends the batches on.

The order of samples is the client's arithmetic, and client and server never import each other. So an output is
a client: the command `shardfeed push`, started here as `shardfeed.local` starts a server there. It comes to a Unix
socket in a private folder, shares workers, fairness and budgets with every other client, and neither a slow
receiver nor a fault in it can hold up the front.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from shardfeed_server.events import logger
from shardfeed_server.output_config import OutputConfig
from shardfeed_wire.errors import ShardfeedError

__all__ = ["Outputs"]

_PAUSE_SECONDS = 1.0
_STOP_SECONDS = 10.0

log = logger("shardfeed.server")


class Outputs:
    """The processes of a server's outputs."""

    def __init__(self, outputs: Sequence[OutputConfig], streams: Sequence[str], options: Sequence[str] = ()) -> None:
        """Start nothing yet; ``streams`` are the names of the server's streams, ``options`` of each process."""
        self._outputs = [(output, output.stream or streams[0]) for output in outputs]
        self._folder = Path(tempfile.mkdtemp(prefix="shardfeed-")) if outputs else None
        self._options = tuple(options)
        self._reader, self._alive = -1, -1
        self._tasks: list[asyncio.Task[None]] = []
        self._processes: dict[int, tuple[asyncio.subprocess.Process, str]] = {}
        self._told: set[int] = set()
        """The processes, by their ids, that were told to end for another to begin."""
        self._gone: set[str] = set()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """What the server is to listen on for its outputs: one in a folder that no other user can enter, or none."""
        return () if self._folder is None else (f"ipc://{self._folder}/feed",)

    def start(self, failed: Callable[[], None]) -> None:
        """Send, and call ``failed`` when an output cannot: `check` then says why.

        One that was killed is started again, and begins with epoch 0. The processes end with this one, however it
        ends: they wait for the end of a pipe.
        """
        self._reader, self._alive = os.pipe()
        for output, stream in self._outputs:
            task = asyncio.create_task(self._keep(output, stream))
            task.add_done_callback(lambda task: failed() if not task.cancelled() and task.exception() else None)
            self._tasks.append(task)

    def streams_change(self, changed: Iterable[str], gone: Iterable[str]) -> None:
        """Begin anew, with epoch 0, with the streams that are about to change, and end with those about to go."""
        changed = set(changed)
        self._gone = (self._gone - changed) | set(gone)
        others = self._gone | changed
        for process, stream in self._processes.values():
            if stream in others:
                self._told.add(process.pid)
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()

    async def stop(self) -> None:
        """End the processes and wait for them, some seconds at most before they are killed. Idempotent."""
        if self._alive < 0:
            return
        os.close(self._alive)
        self._alive = -1
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        os.close(self._reader)

    def remove(self) -> None:
        """Remove the folder. Idempotent."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def check(self) -> None:
        """Raise the ShardfeedError of an output that failed, if one did."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _keep(self, output: OutputConfig, stream: str) -> None:
        """Keep one output's process until it has nothing more to send, or is told to end."""
        options = [*output.arguments(stream), *self._options, "--end-with", str(self._reader)]
        while self._alive >= 0:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "shardfeed", "push", *self.endpoints, *options),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[self._reader],
                start_new_session=True,  # Ctrl-C is for the server, which then ends them
            )
            self._processes[process.pid] = process, stream
            try:
                status = await process.wait()
            except BaseException:
                process.kill()
                await process.wait()
                raise
            finally:
                del self._processes[process.pid]
            if process.pid in self._told:
                self._told.discard(process.pid)
                if stream not in self._gone:
                    continue
                log.warning("an output's stream is gone; it ends", output=output.url, stream=stream)
                return
            if status > 0:
                raise ShardfeedError(
                    f"output {output.url}: its process ended with exit status {status}, for the reason above; the "
                    "server ends with it"
                )
            if self._alive < 0 or (status == 0 and output.epochs is not None):
                return
            log.warning("an output's process was killed and is started again", output=output.url, status=status)
            await asyncio.sleep(_PAUSE_SECONDS)
