"""An answer as its asker has it: where it lies in a worker's memory, and what it says to this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from shardfeed_server.answer import Answer
from shardfeed_server.figures import Work
from shardfeed_server.slots import Slot
from shardfeed_wire.messages import Batch, Seconds, pack, unpack
from shardfeed_wire.tenbin import encode_chunks

__all__ = ["Answered", "Hold", "Own"]


class Hold:
    """How many have an answer. ``free`` is called once the last has given it back."""

    def __init__(self, free: Callable[[], None]) -> None:
        """Begin with one."""
        self._holders, self._free = 1, free

    def add(self) -> None:
        """Count one more."""
        self._holders += 1

    def drop(self) -> None:
        """Count one less."""
        self._holders -= 1
        if not self._holders:
            self._free()


class Own(NamedTuple):
    """What an asker is to read in the control message instead of what was written for the first one."""

    request: int
    seconds: Seconds


@dataclass(slots=True, eq=False)
class Answered:
    """One asker's part in an answer: the memory, what it took, and ``own``, None for the one that it was made for.

    Each is to be released once, when it is sent, or not lent any more.
    """

    slot: Slot
    answer: Answer
    work: Work
    hold: Hold
    own: Own | None = None

    @property
    def size(self) -> int:
        """Bytes of the answer."""
        return self.answer.end - self.answer.start

    def share(self) -> Answered:
        """Return another asker's part, which does not know its ``own`` yet."""
        self.hold.add()
        return Answered(self.slot, self.answer, self.work, self.hold)

    def chunks(self, *, single: bool) -> list[Any]:
        """Return the message's frames: one for each chunk, or one for all.

        They are views of the memory, but for a control message of one's own. In one frame with it all is copied.
        """
        memory = memoryview(self.slot.memory)
        if single and self.own is None:
            return [memory[self.answer.start : self.answer.end]]
        chunks: list[Any] = [memory[start : start + size] for start, size in self.answer.chunks]
        if self.own is not None:
            chunks[:2] = self._control(chunks[:2], self.own)
        return [encode_chunks(chunks)] if single else chunks

    def _control(self, chunks: list[Any], own: Own) -> list[Any]:
        batch, _ = unpack(chunks)
        assert isinstance(batch, Batch), "workers write nothing else"
        return pack(msgspec.structs.replace(batch, request=own.request, seconds=own.seconds))

    def release(self) -> None:
        """Give it back; no view may be used after this."""
        self.hold.drop()
