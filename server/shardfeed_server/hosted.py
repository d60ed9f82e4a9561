"""A server in a process that another program started and looks after: `HostedServer`, and what it runs.

The configuration goes in by the standard input, what is served comes back as one line on the standard output, and the
server ends, drained, when the pipe closes that its host holds: by `stop` or by the host's death.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO

import msgspec

from shardfeed_server.config import ServerConfig
from shardfeed_server.serve import Observer, Serving, serve
from shardfeed_wire.errors import DataError, ShardfeedError

__all__ = ["Hosted", "HostedServer"]

_LOG_BYTES = 8_000


class Hosted(msgspec.Struct, frozen=True, kw_only=True):
    """What a hosted server says when it is ready. ``http`` is its HTTP port's URL, None where off."""

    endpoints: tuple[str, ...]
    streams: tuple[str, ...]
    samples: int
    workers: int
    http: str | None = None


class HostedServer:
    """A loader server in a process of its own."""

    def __init__(self, config: ServerConfig) -> None:
        """Start it, and return when it is ready. Blocks while it makes manifests.

        Raises DataError, with what it printed, where it does not come up.
        """
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        reader, self._alive = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shardfeed_server.hosted", str(reader)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                pass_fds=[reader],
                start_new_session=True,
            )
        except BaseException:
            os.close(self._alive)
            self._log.close()
            raise
        finally:
            os.close(reader)
        self._told_to_stop = threading.Event()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdin as given, self._process.stdout as said:
            given.write(msgspec.json.encode(config))
            given.close()
            line = said.readline()
        if not line:
            code = self._process.wait()
            text = self._output()
            self._close()
            raise DataError(f"a loader server did not come up (exit status {code}):\n{text}")
        self.hosted = msgspec.json.decode(line, type=Hosted)
        """What it serves."""

    @property
    def pid(self) -> int:
        """The number of its front process."""
        return self._process.pid

    def wait(self) -> str | None:
        """Block until the server ends. Returns what it printed at last, or None where `stop` ended it."""
        self._process.wait()
        return None if self._told_to_stop.is_set() else self._output()

    def stop(self, patience: float) -> None:
        """Let the server answer what is under way and end. Blocks for up to ``patience`` seconds. Idempotent."""
        self._told_to_stop.set()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._close()

    def _output(self) -> str:
        self._log.seek(0)
        return self._log.read()[-_LOG_BYTES:].decode("utf-8", "replace").strip()

    def _close(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
            self._log.close()


def _run(end_with: int) -> int:
    """Be the server: configuration in, one line out."""
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=ServerConfig)

    def ready(serving: Serving) -> None:
        hosted = Hosted(
            endpoints=serving.endpoints,
            streams=tuple(info.name for info in serving.streams),
            samples=sum(info.samples for info in serving.streams),
            workers=serving.workers,
            http=serving.http,
        )
        sys.stdout.buffer.write(msgspec.json.encode(hosted) + b"\n")
        sys.stdout.buffer.flush()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # nobody reads on, and what a transform prints must not fail for it
        os.close(null)

    try:
        serve(config, Observer(ready=ready), end_with=end_with)
    except ShardfeedError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_run(int(sys.argv[1])))
