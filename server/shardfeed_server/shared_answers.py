"""Equal requests share one decoding: those under way are joined, and finished answers are kept for later ones.

Two requests are equal where their answers are: the same samples of a stream in the same order, with the same
seed and epoch. So trainers that differ in nothing but what they learn (a sweep over learning rates, say) cost
the server the decoding of one.

An answer is kept only where that is likely to be of use: while, in the last ten minutes, some request of
the same stream and seed was equal to one before it. A single trainer, or ranks with samples of their own, so cost
no memory. All of it runs in the front's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol, TypeAlias

import msgspec
from msgspec import UNSET

from shardfeed_server.answered import Answered, Own
from shardfeed_server.figures import Work
from shardfeed_server.workers import Workers
from shardfeed_wire.messages import Get, Seconds

__all__ = ["Asker", "SharedAnswers"]

_MOST_SEEN = 16_384
_MOST_PLANS = 256
_PLAN_SECONDS = 600.0

_Key: TypeAlias = "tuple[Workers, Get, bytes, bytes]"
_Plan: TypeAlias = "tuple[str, str, str, int]"


class Asker(Protocol):
    """A request, as far as it matters here; ``since`` is when it came."""

    @property
    def get(self) -> Get:
        """What is asked for."""

    @property
    def block(self) -> bytes:
        """The samples' blocks."""

    @property
    def index(self) -> bytes:
        """Their places in these."""

    @property
    def since(self) -> float:
        """When it came, in seconds of ``time.monotonic``."""

    @property
    def workers(self) -> Workers:
        """Who is to answer it."""


class SharedAnswers:
    """The answers that are being made and those that are kept."""

    def __init__(self, most: int, room: Callable[[], int]) -> None:
        """Have none. ``most`` bounds the bytes of memory kept, 0 for none; ``room`` gives what else bounds them now."""
        self._most, self._room = most, room
        self._workers: Workers | None = None
        self._making: dict[_Key, list[asyncio.Future[Answered]]] = {}
        self._kept: OrderedDict[_Key, Answered] = OrderedDict()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._shared: OrderedDict[_Plan, float] = OrderedDict()
        self.kept_bytes = 0
        """Bytes of the memory that is kept."""

    async def answer(self, asker: Asker) -> Answered:
        """Return a request's answer, made for it or for an equal one. The caller must release it.

        Raises WorkFailedError, to all that share in it, where there is none.
        """
        key = _key(asker)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            self._note(asker.get)
            return _for(asker, kept.share(), Seconds())
        sharing = self._making.get(key)
        if sharing is None:
            return await self._make(key, asker)
        self._note(asker.get)
        part: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        sharing.append(part)
        answered = await part
        return _for(asker, answered, answered.work.seconds)

    def has(self, asker: Asker) -> bool:
        """Whether the answer to a request is kept or being made, so that no worker is needed for it."""
        key = _key(asker)
        return key in self._kept or key in self._making

    def shrink(self) -> None:
        """Let go of what there is no room for, the least recently used first."""
        most = max(0, min(self._most, self._room()))
        while self.kept_bytes > most:
            _, oldest = self._kept.popitem(last=False)
            self.kept_bytes -= oldest.slot.size
            oldest.release()

    def keep_of(self, workers: Workers) -> None:
        """Keep from now on what these workers make, and let go of what earlier ones made."""
        self._workers, self.kept_bytes = workers, 0
        while self._kept:
            self._kept.popitem()[1].release()

    async def _make(self, key: _Key, asker: Asker) -> Answered:
        """Have an answer made, and give a part of it to each that joined meanwhile."""
        self._see(hash(key), asker.get)
        sharing = self._making[key] = []
        try:
            answered = await asker.workers.answer(asker.get, asker.block, asker.index, since=asker.since)
        except BaseException as error:
            for part in sharing:
                if isinstance(error, Exception) and not part.done():
                    part.set_exception(error)
                else:
                    part.cancel()
            raise
        finally:
            del self._making[key]
        for part in sharing:
            if not part.done():
                part.set_result(answered.share())
        if asker.workers is self._workers and not answered.work.masked and self._is_shared(asker.get):
            self._keep(key, answered)
        return answered

    def _keep(self, key: _Key, answered: Answered) -> None:
        if answered.slot.size <= min(self._most, self._room()):
            self._kept[key] = answered.share()
            self.kept_bytes += answered.slot.size
            self.shrink()

    # Which streams and seeds are asked for by more than one

    def _see(self, fingerprint: int, get: Get) -> None:
        """Note that an answer is made, which may have been made before."""
        if fingerprint in self._seen:
            self._note(get)
        self._seen[fingerprint] = None
        self._seen.move_to_end(fingerprint)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    def _note(self, get: Get) -> None:
        """Note that a request equals an earlier one."""
        plan = _plan(get)
        self._shared[plan] = time.monotonic()
        self._shared.move_to_end(plan)
        if len(self._shared) > _MOST_PLANS:
            self._shared.popitem(last=False)

    def _is_shared(self, get: Get) -> bool:
        return time.monotonic() - self._shared.get(_plan(get), -_PLAN_SECONDS) < _PLAN_SECONDS


def _key(asker: Asker) -> _Key:
    return asker.workers, msgspec.structs.replace(asker.get, request=0, waited=UNSET), asker.block, asker.index


def _plan(get: Get) -> _Plan:
    return get.stream, get.data, get.recipe, get.seed


def _for(asker: Asker, answered: Answered, worked: Seconds) -> Answered:
    """Address a part in another's answer: with its own number and, of the seconds worked on it, those that it saw."""
    took = worked.reading + worked.decoding + worked.collating
    waiting = max(0.0, time.monotonic() - asker.since - took)
    seconds = msgspec.structs.replace(worked, waiting=waiting)
    answered.own = Own(asker.get.request, seconds)
    answered.work = Work(seconds=seconds, masked=answered.work.masked)
    return answered
