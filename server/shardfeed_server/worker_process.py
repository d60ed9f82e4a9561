"""One worker process as the front sees it: jobs in, answers out, signs of life."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from typing import Protocol

from shardfeed_server.answered import Answered, Hold
from shardfeed_server.events import logger
from shardfeed_server.jobs import (
    Described,
    Done,
    Failed,
    Job,
    Lost,
    Progress,
    Ready,
    Release,
    StreamSource,
    decode_from_worker,
    encode,
    socket_pair,
)
from shardfeed_server.slots import Slot
from shardfeed_server.strikes import Strikes
from shardfeed_server.worker_entry import SentDescriptor, enter
from shardfeed_wire.messages import Get, StreamInfo

__all__ = ["Pool", "WaitingJob", "WorkFailedError", "WorkerProcess"]

_MESSAGE_BYTES = 1 << 20
_SILENCE = 30.0
"""Seconds between two lines of the log about answers that cannot be sent."""

log = logger("shardfeed.server")


class WorkFailedError(Exception):
    """A job has no answer; ``reason`` is the protocol's word. Stays inside the server."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True, eq=False)
class WaitingJob:
    """A request until it is answered. ``strikes`` counts the workers that died at it."""

    number: int
    get: Get
    block: bytes
    index: bytes
    since: float
    result: asyncio.Future[Answered]
    strikes: Strikes = field(default_factory=Strikes)

    def message(self) -> bytes:
        """Return what the worker is told."""
        return encode(
            Job(
                number=self.number,
                get=self.get,
                block=self.block,
                index=self.index,
                since=self.since,
                bad_rows=self.strikes.bad_rows,
            )
        )


class Pool(Protocol):
    """Who is told what a worker process does. All calls come in the event loop."""

    def ready(self) -> None:
        """A worker has started."""

    def free(self) -> None:
        """A worker has finished something."""

    def died(self, process: WorkerProcess) -> None:
        """A worker is gone, and what it was at with it."""


class WorkerProcess:
    """One worker process and the front's end of the link to it."""

    def __init__(self, pool: Pool, context: ForkServerContext, sources: Sequence[StreamSource]) -> None:
        """Start it. Blocks for some milliseconds, once the fork server is up. Raises OSError where it cannot be."""
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self.jobs: dict[int, WaitingJob] = {}
        self.asked: dict[int, asyncio.Future[StreamInfo]] = {}
        self.progress = Progress()
        self.moved: tuple[int, int] = (0, 0)
        self.moved_at = self._loop.time()
        self.hung = False
        self._complained_at = -_SILENCE
        self._slots: dict[int, Slot] = {}
        self._unsaid: deque[bytes] = deque()
        self.closed = False
        with contextlib.ExitStack() as undo:
            undo.callback(self.progress.close)
            self._link, theirs = socket_pair()
            undo.enter_context(self._link)
            self._link.setblocking(False)
            with theirs:
                self.process = context.Process(
                    target=enter,
                    args=(theirs, SentDescriptor(self.progress.descriptor), sources),
                    daemon=True,
                    name="shardfeed-worker",
                )
                self.process.start()
            undo.pop_all()
        self._loop.add_reader(self._link, self._read)

    def say(self, message: bytes) -> None:
        """Send a message, soon. One that a dead worker does not take is dropped."""
        if self.closed:
            return
        self._unsaid.append(message)
        if len(self._unsaid) == 1:
            self._write()

    def _write(self) -> None:
        while self._unsaid:
            try:
                self._link.send(self._unsaid[0])
            except BlockingIOError:
                self._loop.add_writer(self._link, self._write)
                return
            except OSError:  # dead: reading says so too
                self._unsaid.clear()
                break
            self._unsaid.popleft()
        self._loop.remove_writer(self._link)

    def _read(self) -> None:
        while not self.closed:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._link, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                message, descriptors = b"", []
            if not message:
                self._died()
                return
            self._take(message, descriptors)

    def _take(self, message: bytes, descriptors: list[int]) -> None:
        match decode_from_worker(message):
            case Done() as done:
                for slot in done.dropped:
                    if slot in self._slots:
                        self._slots.pop(slot).drop()
                self._done(done, descriptors)
                self._pool.free()
            case Failed(number=number, reason=reason, message=text):
                error = WorkFailedError(reason, text)
                asked = self.asked.pop(number, None)
                if asked is not None:
                    asked.set_exception(error)
                elif not (failed := self.jobs.pop(number).result).done():
                    failed.set_exception(error)
                self._pool.free()
            case Described(number=number, info=info):
                self.asked.pop(number).set_result(info)
                self._pool.free()
            case Ready():
                self._pool.ready()

    def _done(self, done: Done, descriptors: list[int]) -> None:
        result = self.jobs.pop(done.number).result
        if done.new_size:
            try:
                self._slots[done.slot] = _new_slot(descriptors, done.new_size)
            except OSError as error:
                self.say(encode(Lost(slot=done.slot)))
                now = self._loop.time()
                if now >= self._complained_at + _SILENCE:
                    self._complained_at = now
                    log.warning("answers cannot be sent: the server has reached one of its limits", error=str(error))
                if not result.done():
                    result.set_exception(WorkFailedError("busy", f"the server has reached one of its limits: {error}"))
                return
        free = encode(Release(slot=done.slot))
        answered = Answered(self._slots[done.slot], done.answer, done.work, Hold(lambda: self.say(free)))
        if result.done():  # cancelled meanwhile
            answered.release()
        else:
            result.set_result(answered)

    def watch(self, patience: float) -> None:
        """Kill a worker that has been at one row for longer than ``patience`` seconds."""
        moved = self.progress.read()
        if moved != self.moved or not (self.jobs or self.asked):
            self.moved, self.moved_at = moved, self._loop.time()
        elif self._loop.time() - self.moved_at > patience and self.process.pid is not None:
            self.hung = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    def _died(self) -> None:
        self.close()
        self._pool.died(self)

    def bury(self, patience: float) -> str:
        """Release what is left of a process that died, and say what it died of. Blocks for a moment."""
        self.process.join(1.0)
        cause = f"no sign of life for {patience:g} s" if self.hung else _cause(self.process.exitcode)
        self.process.close()
        self.progress.close()
        return cause

    def close(self) -> None:
        """Let go of the process; it ends when it sees the link closed."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._link)
            self._loop.remove_writer(self._link)
            self._link.close()
            while self._slots:
                self._slots.popitem()[1].drop()


def _new_slot(descriptors: list[int], size: int) -> Slot:
    """Map a slot whose descriptor came along. Raises OSError where the system lets this process have no more."""
    if not descriptors:  # the kernel leaves out what it cannot hand over
        raise OSError(
            errno.EMFILE,
            f"{os.strerror(errno.EMFILE)} (ulimit -n, or LimitNOFILE of a service, allows "
            f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} descriptors)",
        )
    return Slot(descriptors[0], size)


def _cause(exitcode: int | None) -> str:
    """Say in words how a process ended."""
    if exitcode is None:
        return "its link broke"
    if exitcode >= 0:
        return f"exit status {exitcode}"
    return f"signal {signal.Signals(-exitcode).name}"
