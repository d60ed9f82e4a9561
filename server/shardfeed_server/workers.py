"""The worker processes as the front sees them: jobs in, answers out, and a new one for each that dies."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerContext

from shardfeed_server.answered import Answered
from shardfeed_server.events import logger
from shardfeed_server.fork_server import start_fork_server
from shardfeed_server.jobs import Asked, Progress, StreamSource, encode
from shardfeed_server.strikes import Strikes, WorkerDiedError
from shardfeed_server.worker_process import WaitingJob, WorkerProcess, WorkFailedError
from shardfeed_wire.errors import ConfigError
from shardfeed_wire.messages import Get, StreamInfo

__all__ = ["WorkFailedError", "Workers"]

_AHEAD = 2
"""Jobs a worker has at once: the one it is at, and the next."""

_WATCH = 1.0
_PAUSE = 1.0
_END_SECONDS = 3.0

log = logger("shardfeed.server")


class Workers:
    """A pool of worker processes for one server."""

    def __init__(self, sources: Sequence[StreamSource], count: int, *, sample_timeout: float) -> None:
        """Start nothing yet. ``sample_timeout`` in seconds."""
        self.sources = sources
        self.count = count
        self._sample_timeout = sample_timeout
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._processes: list[WorkerProcess] = []
        self._waiting: deque[WaitingJob] = deque()
        self._next_number = 1
        self._watcher: asyncio.Task[None] | None = None
        self._capacity = asyncio.Event()
        self._quick_deaths = 0
        self._fork_server = asyncio.Lock()
        self._replacing: set[asyncio.Task[None]] = set()
        self.on_death: Callable[[], None] = lambda: None
        """Called when a worker died."""
        self.entrusted = 0
        """Requests that the front has taken for these workers and not settled yet."""

    async def start(self) -> None:
        """Start the processes. Returns when the fork server is up, after seconds; they announce themselves later.

        Raises ConfigError where the system lets this process have no more; `stop` ends those that were started.
        """
        try:
            await asyncio.to_thread(self._start_fork_server)
            for _ in range(self.count):
                self._processes.append(WorkerProcess(self, self.context, self.sources))
        except (OSError, EOFError) as error:
            raise ConfigError(
                f"worker {len(self._processes) + 1} of {self.count} cannot be started: {error}; raise the limit "
                "(ulimit -n or -u), or ask for fewer with --workers"
            ) from error
        self._watcher = asyncio.create_task(self._watch())

    def _start_fork_server(self) -> None:
        # Where a later configuration needs torch and the first did not, each worker imports it for itself.
        torch = ["torch"] if any(source.config.needs_torch for source in self.sources) else []
        start_fork_server(self.context, ["shardfeed_server.worker", *torch])

    async def room(self) -> None:
        """Block until some worker can take a job at once."""
        while self._free_process() is None or self._waiting:
            self._capacity.clear()
            await self._capacity.wait()

    async def answer(self, get: Get, block: bytes, index: bytes, *, since: float) -> Answered:
        """Have a request that came at ``since`` answered by a worker. The caller must `Answered.release` the result.

        Raises WorkFailedError where it cannot be; a worker that dies meanwhile is replaced and the request
        tried again. When cancelled, an answer that comes yet is thrown away.
        """
        job = WaitingJob(self._number(), get, block, index, since, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._dispatch()
        try:
            return await job.result
        finally:
            if job in self._waiting:  # remove() of what is not there words an error, at a cost
                self._waiting.remove(job)

    async def describe(self, stream: str) -> StreamInfo:
        """Have a worker say what a stream is. Raises WorkFailedError where no sample of it can be made."""
        strikes = Strikes()
        while not strikes.hopeless:
            process = await self._open_process()
            number = self._number()
            asked = process.asked[number] = asyncio.get_running_loop().create_future()
            process.say(encode(Asked(number=number, stream=stream, bad_rows=strikes.bad_rows)))
            try:
                info: StreamInfo = await asked
                return info
            except WorkerDiedError as died:
                strikes.add(died.row, str(died))
        raise WorkFailedError("failed", f"workers died at the first samples of stream {stream!r}: {strikes.last}")

    async def stop(self) -> None:
        """End the processes and wait for them, a few seconds at most before they are killed."""
        if self._watcher is not None:
            self._watcher.cancel()
        for replacing in self._replacing:
            replacing.cancel()
        processes = [process for process in self._processes if not process.closed]  # the others are buried
        self._processes = []
        for process in processes:
            process.close()
        deadline = time.monotonic() + _END_SECONDS
        for process in processes:
            await asyncio.to_thread(process.process.join, max(deadline - time.monotonic(), 0))
            if process.process.is_alive():
                process.process.kill()
                await asyncio.to_thread(process.process.join)
            process.process.close()
            process.progress.close()

    # Called by the processes

    def ready(self) -> None:
        """A worker has started."""
        self._quick_deaths = 0
        self._dispatch()

    def free(self) -> None:
        """A worker has finished something."""
        self._dispatch()

    def died(self, process: WorkerProcess) -> None:
        """Replace a worker, and try again what it was at."""
        if process not in self._processes:
            return
        job_number, row = process.progress.read()
        cause = process.bury(self._sample_timeout)
        log.warning("a worker died and is replaced", cause=cause)
        self.on_death()
        for number, asked in process.asked.items():
            asked.set_exception(WorkerDiedError(cause, row if number == job_number else Progress.BETWEEN))
        for job in sorted(process.jobs.values(), key=lambda job: job.number, reverse=True):
            if job.number == job_number:
                job.strikes.add(row, cause)
            if job.strikes.hopeless and not job.result.done():
                job.result.set_exception(WorkFailedError("failed", f"workers died at this request: {cause}"))
            elif not job.result.done():
                self._waiting.appendleft(job)
        self._quick_deaths += 1
        if self._quick_deaths > 10 * self.count:
            # Something kills them at birth: do not spin.
            asyncio.get_running_loop().call_later(_PAUSE, self._replace, process)
        else:
            self._replace(process)
        self._dispatch()

    def _replace(self, process: WorkerProcess) -> None:
        replacing = asyncio.create_task(self._start_in_place_of(process))
        self._replacing.add(replacing)
        replacing.add_done_callback(self._replacing.discard)

    async def _start_in_place_of(self, process: WorkerProcess) -> None:
        try:
            async with self._fork_server:  # which may be gone as well: nobody else waits for it to start again
                await asyncio.to_thread(self._start_fork_server)
            if process not in self._processes:
                return
            new = WorkerProcess(self, self.context, self.sources)
        except (OSError, EOFError) as error:  # no descriptor or no process is left, say
            log.warning("no worker can be started in the place of one that died; it is tried again", error=str(error))
            asyncio.get_running_loop().call_later(_PAUSE, self._replace, process)
            return
        self._processes[self._processes.index(process)] = new
        self._dispatch()

    def _dispatch(self) -> None:
        while self._waiting:
            process = self._free_process()
            if process is None:
                break
            job = self._waiting.popleft()
            if not job.result.done():
                if not process.jobs:
                    process.moved_at = asyncio.get_running_loop().time()
                process.jobs[job.number] = job
                process.say(job.message())
        self._capacity.set()

    async def _open_process(self) -> WorkerProcess:
        """Return the process with the fewest jobs; block until there is one."""
        while not (running := [process for process in self._processes if not process.closed]):
            self._capacity.clear()
            await self._capacity.wait()
        return min(running, key=lambda process: len(process.jobs))

    def _free_process(self) -> WorkerProcess | None:
        free = [process for process in self._processes if not process.closed and len(process.jobs) < _AHEAD]
        return min(free, key=lambda process: len(process.jobs), default=None)

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(_WATCH, self._sample_timeout / 4))
            for process in self._processes:
                if not process.closed:
                    process.watch(self._sample_timeout)
