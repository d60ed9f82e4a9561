"""A worker process: one thread that takes a request whole and decodes it into memory shared with the front.

The memory is in slots, each a memfd without a name, passed to the front by descriptor and reused
once the front has sent what lies in it. A worker that dies leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import socket
import time
import traceback
from collections.abc import Sequence

import msgspec
import numpy as np

from shardfeed_server.answer import Answer
from shardfeed_server.jobs import (
    Asked,
    Described,
    Done,
    Failed,
    Job,
    Lost,
    Progress,
    Ready,
    Release,
    StreamSource,
    decode_from_front,
    encode,
)
from shardfeed_server.stream import Stream
from shardfeed_wire.errors import BadRequestError, ConfigError, SampleError, ShapeError, ShardError
from shardfeed_wire.freed_memory import keep_freed_memory
from shardfeed_wire.sharing import seal

__all__ = ["work"]

_GRANULE = 1 << 20
_SPARE_SLOTS = 4
_MESSAGE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


class _Slots:
    """The memory that answers are made in."""

    def __init__(self) -> None:
        self._free: dict[int, mmap.mmap] = {}
        self._used: dict[int, mmap.mmap] = {}
        self._next = 0
        self.dropped: list[int] = []
        self.taken = -1
        self.new: int | None = None  # the descriptor of the slot taken, where the front does not know it yet
        self.new_size = 0

    def allocate(self, size: int) -> memoryview:
        """Return writable memory of at least ``size`` bytes, instead of an earlier call's for the same answer."""
        self.give_back()
        fitting = [slot for slot, memory in self._free.items() if len(memory) >= size]
        if fitting:
            slot = min(fitting, key=lambda slot: len(self._free[slot]))
            self._used[slot] = self._free.pop(slot)
        else:
            slot = self._make(size)
        self.taken = slot
        return memoryview(self._used[slot])

    def _make(self, size: int) -> int:
        if self._free:  # too small: the pace has changed, so smaller ones make way
            self._drop(min(self._free, key=lambda slot: len(self._free[slot])))
        size = -(-(size + size // 8) // _GRANULE) * _GRANULE
        descriptor = os.memfd_create("shardfeed-answer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(descriptor, 0, size)  # full memory is an error here, never a bus error later
            memory = mmap.mmap(descriptor, size)
            seal(descriptor)  # from here on only this mapping is written to
        except BaseException:
            os.close(descriptor)
            raise
        slot, self._next = self._next, self._next + 1
        self._used[slot], self.new, self.new_size = memory, descriptor, size
        return slot

    def give_back(self) -> None:
        """Take back a slot that no answer came to lie in."""
        if self.taken >= 0:
            slot, self.taken = self.taken, -1
            if self.new is not None:  # unknown to the front, so it may go without a word
                os.close(self.new)
                self.new = None
                del self._used[slot]
            else:
                self._free[slot] = self._used.pop(slot)

    def handed_over(self) -> None:
        """Note that the front now has the answer and, where it was new, the slot."""
        if self.new is not None:
            os.close(self.new)
            self.new = None
        self.taken = -1
        self.dropped.clear()

    def release(self, slot: int) -> None:
        """Take a slot back that the front is done with."""
        self._free[slot] = self._used.pop(slot)
        while len(self._free) > _SPARE_SLOTS:
            self._drop(min(self._free, key=lambda slot: len(self._free[slot])))

    def lose(self, slot: int) -> None:
        """Give a slot up that did not reach the front."""
        del self._used[slot]

    def _drop(self, slot: int) -> None:
        del self._free[slot]  # unmapped when the last view of it goes
        self.dropped.append(slot)


class _Worker:
    def __init__(self, link: socket.socket, progress: Progress, sources: Sequence[StreamSource]) -> None:
        self._link, self._progress = link, progress
        self._sources = {source.name: source for source in sources}
        self._streams: dict[str, Stream] = {}
        self._slots = _Slots()

    def _stream(self, name: str) -> Stream:
        """Return a stream, made when first needed: its transforms may take seconds to import, or fail to."""
        if name not in self._streams:
            source = self._sources[name]
            self._streams[name] = Stream(name, source.config, source.manifest, source.reader, code_dir=source.code_dir)
        return self._streams[name]

    def run(self) -> None:
        self._link.sendall(encode(Ready()))
        while message := self._link.recv(_MESSAGE_BYTES):
            match decode_from_front(message):
                case Job() as job:
                    self._answer(job)
                case Asked() as asked:
                    self._describe(asked)
                case Release(slot=slot):
                    self._slots.release(slot)
                case Lost(slot=slot):
                    self._slots.lose(slot)

    def _answer(self, job: Job) -> None:
        self._progress.note(job.number, Progress.BETWEEN)
        cpu = time.process_time()  # with the threads that fetch ahead; a worker is at one job at a time
        try:
            stream = self._stream(job.get.stream)
            answer: Answer = stream.answer(
                job.get,
                np.frombuffer(job.block, np.uint32),
                np.frombuffer(job.index, np.uint16),
                self._slots.allocate,
                at_row=self._progress.of(job.number),
                bad_rows=job.bad_rows,
                waiting=time.monotonic() - job.since,
            )
        except ShardError as error:
            self._failed(job.number, "unreadable_shard", str(error))
        except ShapeError as error:
            self._failed(job.number, "shapes_differ", str(error))
        except (BadRequestError, IndexError) as error:
            self._failed(job.number, "bad_request", str(error))
        except Exception:
            self._failed(job.number, "failed", f"the worker failed at this request:\n{traceback.format_exc()}")
        else:
            slots = self._slots
            done = Done(
                number=job.number,
                slot=slots.taken,
                answer=answer,
                new_size=slots.new_size if slots.new is not None else 0,
                dropped=tuple(slots.dropped),
                work=msgspec.structs.replace(stream.work, cpu=time.process_time() - cpu),
            )
            descriptors = [] if slots.new is None else [slots.new]
            socket.send_fds(self._link, [encode(done)], descriptors)
            slots.handed_over()

    def _failed(self, number: int, reason: str, message: str) -> None:
        self._slots.give_back()
        said = message[:32_768].encode("utf-8", "replace").decode("utf-8")  # a path may hold what UTF-8 does not
        self._link.sendall(encode(Failed(number=number, reason=reason, message=said)))

    def _describe(self, asked: Asked) -> None:
        number = asked.number
        self._progress.note(number, Progress.BETWEEN)
        try:
            info = self._stream(asked.stream).describe(at_row=self._progress.of(number), bad_rows=asked.bad_rows)
            self._link.sendall(encode(Described(number=number, info=info)))
        except (SampleError, ShardError, ShapeError, ConfigError) as error:
            self._failed(number, "failed", str(error))
        except Exception:
            self._failed(number, "failed", traceback.format_exc())


def work(link: socket.socket, progress_descriptor: int, sources: Sequence[StreamSource]) -> None:
    """Run a worker until the front closes ``link``. Called in a fresh process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front drains, and then closes the link
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if any(source.config.needs_torch for source in sources):
        import torch

        torch.set_num_threads(1)
    if any(source.reader.far is not None for source in sources):
        keep_freed_memory()  # blocks come in it, and the kernel would clear it anew for each
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _Worker(link, Progress(progress_descriptor), sources).run()
