"""Requests that were taken: queued fairly, answered by workers, and the answers lent or sent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from shardfeed_server.answered import Answered
from shardfeed_server.events import logger
from shardfeed_server.fair_queue import FairQueue
from shardfeed_server.figures import Figures
from shardfeed_server.lending import Lending
from shardfeed_server.shared_answers import SharedAnswers
from shardfeed_server.worker_process import WorkFailedError
from shardfeed_server.workers import Workers
from shardfeed_wire.errors import BrokenChannelError, ClosedChannelError
from shardfeed_wire.messages import Get, Refused
from shardfeed_wire.transport import Listener

__all__ = ["Answering", "Request"]

_FIRST_ROW_BYTES = 150_000
_ITEMS_PER_JOB = 1_024
_LEAST_SPEED = 1e6
"""Bytes a second that a client must read of its answers, once it was waited for."""

_HASTE = 5.0
_LEAST_SPEED_IN_HASTE = 4e6
"""Seconds, and bytes a second beside them, while a job has nothing because the others hold all of ``send_bytes``."""

log = logger("shardfeed.server")


@dataclass(slots=True, eq=False)
class Request:
    """A Get that makes sense, and what is known of it; ``single`` is the framing, ``workers`` those that answer it."""

    listener: Listener
    peer: bytes
    single: bool
    get: Get
    block: bytes
    index: bytes
    rows: int
    since: float
    workers: Workers


class Answering:
    """The requests that wait or are under way. All of it runs in the front's event loop."""

    def __init__(
        self,
        *,
        send_bytes: int,
        queue_requests: int,
        answer_cache_bytes: int,
        lending: Lending | None,
        figures: Figures,
        patience: float,
        refuse: Callable[[Request, Refused], None],
        settled: Callable[[bytes], None],
    ) -> None:
        """Have nothing to do yet.

        After ``patience`` seconds a client that does not read its answers is cut off. ``refuse`` is called for a
        request that workers could not answer, ``settled`` with the peer of each that is over, however it ended.
        """
        self._lending, self._figures, self._refuse, self._settled_for = lending, figures, refuse, settled
        self._patience = patience
        self._queue: FairQueue[Request] = FairQueue(
            unsent_bytes=send_bytes,
            items_per_job=min(_ITEMS_PER_JOB, queue_requests),
            items=queue_requests,
        )
        self._shared = SharedAnswers(answer_cache_bytes, lambda: send_bytes - self._queue.unsent)
        self._row_bytes: dict[str, float] = {}
        self._cancelled: set[tuple[bytes, int]] = set()
        self._underway: Counter[tuple[bytes, int]] = Counter()
        self._sending: dict[Request, float] = {}  # and when it must make room, where others starve
        self._pushed, self._settled = asyncio.Event(), asyncio.Event()
        self._dispatching: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def unsent(self) -> int:
        """Bytes of answers that are being made or sent."""
        return self._queue.unsent

    @property
    def kept(self) -> int:
        """Bytes of answers that are kept for requests equal to those that they were made for."""
        return self._shared.kept_bytes

    def hand_to(self, workers: Workers) -> None:
        """Hand requests out as these workers, which must be started, have room; to others what is theirs."""
        if self._dispatching is not None:
            self._dispatching.cancel()
        self._shared.keep_of(workers)
        self._dispatching = self._start(self._dispatch(workers))

    def take(self, job: str, request: Request) -> bool:
        """Let a request wait for its job's turn; False where the queue is full."""
        size = round(request.rows * self._row_bytes.get(request.get.stream, _FIRST_ROW_BYTES))
        if not self._queue.push(job, request, size):
            return False
        request.workers.entrusted += 1
        self._hand_out_shared()
        self._pushed.set()
        return True

    def cancel(self, peer: bytes, numbers: set[int]) -> None:
        """Forget a peer's requests with these numbers: those that wait, and the answers of those under way."""
        waiting = self._queue.remove(lambda request: request.peer == peer and request.get.request in numbers)
        for request in waiting:
            self._over(request)
        self._cancelled |= {(peer, number) for number in numbers} & self._underway.keys()

    async def finished(self) -> None:
        """Return when no request waits or is under way."""
        while self._queue or self._underway:
            self._settled.clear()
            await self._settled.wait()

    async def answered_by(self, workers: Workers) -> None:
        """Return when everything that these workers were to answer is answered and sent."""
        while workers.entrusted:
            self._settled.clear()
            await self._settled.wait()

    async def close(self) -> None:
        """Stop at once what is still under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("the front failed at a request; this is a defect", exc_info=task.exception())

    def _over(self, request: Request) -> None:
        """Count a request as over, however it ended."""
        request.workers.entrusted -= 1
        self._settled_for(request.peer)
        self._settled.set()

    async def _dispatch(self, workers: Workers) -> None:
        """Hand requests to workers as these have room, in the queue's order, and to earlier ones what is theirs."""
        while True:
            await workers.room()
            popped = self._queue.pop()
            if popped is None:
                await self._move()
                continue
            self._begin(*popped)
            await asyncio.sleep(0)  # the worker is taken before room is looked for again
            self._hand_out_shared()

    def _hand_out_shared(self) -> None:
        """Let requests that share in an answer have it: no worker needs to have room for them."""
        while (popped := self._queue.pop(self._shared.has)) is not None:
            self._begin(*popped)

    def _begin(self, job: str, request: Request, size: int) -> None:
        if request.listener.gone(request.peer):
            self._queue.settle(job, size)
            self._over(request)
            return
        self._underway[request.peer, request.get.request] += 1
        self._start(self._answer(job, request, size))
        self._shared.shrink()

    async def _move(self) -> None:
        """Wait for a reason to look at the queue again; while a job starves, cut off who has not read for longest."""
        self._pushed.clear()
        while not self._pushed.is_set():
            if not (self._queue.starved and self._sending):
                await self._pushed.wait()
                return
            slowest = min(self._sending, key=self._sending.__getitem__)
            left = self._sending[slowest] - time.monotonic()
            if left <= 0:
                del self._sending[slowest]
                slowest.listener.drop(slowest.peer, "it does not read its answers, and others wait for the memory")
                left = _HASTE  # what it held is free in a moment, which sets the event: nobody else need go for it
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pushed.wait(), left)

    async def _answer(self, job: str, request: Request, size: int) -> None:
        """Have one request answered, send the answer, and settle its account."""
        try:
            answered = await self._shared.answer(request)
            # What it holds until it is sent is the slot that it lies in.
            self._queue.correct(job, size, answered.slot.size)
            size = answered.slot.size
            self._shared.shrink()
            self._learn(request.get.stream, answered.size / request.rows)
            if (request.peer, request.get.request) in self._cancelled:
                answered.release()
                return
            began = time.monotonic()
            await self._hand_over(request, answered, self._queue.unsent_of(job))
            now = time.monotonic()
            self._figures.answered(
                request.get.stream,
                job,
                rows=request.rows,
                size=answered.size,
                work=answered.work,
                shared=answered.own is not None,
                sending=now - began,
                now=now,
            )
        except WorkFailedError as error:
            self._figures.request_failed(error.reason)
            refused = Refused(request=request.get.request, reason=error.reason, message=str(error))
            self._refuse(request, refused)
        except (BrokenChannelError, ClosedChannelError):
            pass  # the client asks again, elsewhere or anew
        finally:
            self._queue.settle(job, size)
            mine = (request.peer, request.get.request)
            self._underway[mine] -= 1
            if not self._underway[mine]:
                del self._underway[mine]
                self._cancelled.discard(mine)
            self._over(request)
            self._hand_out_shared()
            self._pushed.set()

    async def _hand_over(self, request: Request, answered: Answered, unsent: int) -> None:
        """Lend an answer to a client on this machine, or send it and return when it is sent.

        A client that does not read it, and the ``unsent`` bytes of its job, in time is cut off: what is kept for it,
        others need.
        """
        if self._lending is not None and self._lending.lend(request.peer, answered):
            return  # the client releases it
        impatient = asyncio.get_running_loop().call_later(
            self._patience + unsent / _LEAST_SPEED, request.listener.drop, request.peer, "it does not read its answers"
        )
        if self._queue.starved:
            self._pushed.set()  # who watches for those that do not read watches this one too
        self._sending[request] = time.monotonic() + _HASTE + unsent / _LEAST_SPEED_IN_HASTE
        try:
            await request.listener.send(request.peer, answered.chunks(single=request.single))
        finally:
            self._sending.pop(request, None)
            impatient.cancel()
            answered.release()

    def _learn(self, stream: str, row_bytes: float) -> None:
        """Learn how large a stream's rows are, for the next request's share of the unsent bytes."""
        known = self._row_bytes.get(stream, row_bytes)
        self._row_bytes[stream] = known + 0.2 * (row_bytes - known)
