"""`PlainDataset`: batches of plain streams, from Tensorcom programs, `PlainSender` or ``shardfeed serve --push``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import torch
import zmq
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from shardfeed.options import read_whole
from shardfeed.peer import Framing
from shardfeed.plain_sctp import SctpReceiver
from shardfeed.plain_sockets import PlainSockets, ReceivingSocket, check_options
from shardfeed.plain_waiting import wait_for
from shardfeed.plain_zeromq import ZeroMQReceiver
from shardfeed.position import this_worker
from shardfeed_wire.errors import ConfigError, TenbinError
from shardfeed_wire.plain import PlainEndpoint, expand_plain
from shardfeed_wire.tenbin import decode_buffer, decode_list

__all__ = ["OnBadMessage", "PlainDataset"]

OnBadMessage: TypeAlias = Literal["raise", "skip"]

_COPY_BELOW = 65_536
"""A smaller array is copied: its message's memory may be shared with others, and is then free at once."""

log = logging.getLogger("shardfeed")


class PlainDataset(IterableDataset[Any]):
    """The batches that arrive on plain streams, in the order of their arrival.

    There is no protocol around them: what is in a batch, how many there are, and what becomes of those that
    a lost sender had, is the senders' affair; `RemoteDataset` promises more. Batches are tuples of
    torch tensors. The sockets stay open between passes, so a pass goes on where the one before ended.
    """

    def __init__(
        self,
        urls: str | Iterable[str],
        length: int | None = None,
        framing: Framing = "multipart",
        infos: bool | Sequence[str] = False,
        *,
        on_error: OnBadMessage = "raise",
        high_water: int = 4,
        frame_bytes: int = 4 << 30,
        timeout: float | None = 300.0,
        insecure: bool = False,
    ) -> None:
        """Say where batches come from. Opens no socket yet: the first `iter` does.

        Args:
            urls: ``zpull://host:port``, ``zsub+ipc:///path``, ``sctp://host:port`` and the like; braces or several
                URLs: from all of them. ``zpull``, ``zrsub`` and ``sctp`` bind, ``zsub`` and ``zrpull`` connect.
            length: batches of one pass, and ``len``; None: a pass never ends.
            framing: what the senders use: ``"multipart"`` (one frame a header and one an array) or ``"single"``.
                Over SCTP a message is always one buffer.
            infos: False: the arrays' names do not matter; True: each item is a tuple of the batch and a list of
                its names; a sequence: the names are to be these, and a batch with others is malformed.
            on_error: ``"raise"`` TenbinError for a message that is no batch, or ``"skip"`` it: it is counted
                in `skipped`, and the first is logged.
            high_water: batches of each sender that wait here; ZeroMQ counts them, and the network holds some more.
                Over SCTP: associations that wait here to be accepted.
            frame_bytes: who sends a larger frame is disconnected. Over SCTP: who sends a larger message, and
                what messages that have not ended may hold together.
            timeout: seconds without a batch after which that is an error; None waits for ever.
            insecure: allow to bind an address that other machines reach. Nothing is encrypted, and whoever
                reaches it can send batches.

        Raises ConfigError for an argument that makes no sense, and EndpointError for a URL that is none.
        """
        super().__init__()
        check_options(framing=framing, high_water=high_water, timeout=timeout)
        length = None if length is None else read_whole("length", length)
        if length is not None and length < 0:
            raise ConfigError(f"length={length}: it is the batches of one pass, 0 or more; None: there is no end")
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error={on_error!r}: it is 'raise' or 'skip'")
        if frame_bytes < 1:
            raise ConfigError(f"frame_bytes={frame_bytes}: it must be at least 1")
        self._endpoints = expand_plain(urls, sends=False)
        self._length, self._framing, self._infos, self._on_error = length, framing, infos, on_error
        self._high_water, self._frame_bytes = high_water, frame_bytes
        self._timeout, self._insecure = timeout, insecure
        self._open: PlainSockets[ReceivingSocket] | None = None
        self._next = 0
        self.received = 0
        """Batches delivered by this object in this process."""
        self.skipped = 0
        """Messages left out because they were no batches, with ``on_error="skip"``."""

    @property
    def urls(self) -> list[str]:
        """The URLs, expanded; after the first `iter` with the ports that were taken where port 0 was asked for."""
        return [one.url for one in (self._endpoints if self._open is None else self._open.all)]

    def __len__(self) -> int:
        """Return ``length``. Raises TypeError where none was given."""
        if self._length is None:
            raise TypeError("this PlainDataset was given no length: pass length= for a len() and an end of each pass")
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """Open the sockets where that has not happened yet, and return an iterator over one pass.

        Its ``next`` blocks; it raises TenbinError, naming the endpoint, for a message that is no batch (with
        ``on_error="raise"``; the pass can go on) and StarvedError after ``timeout``. In a DataLoader's worker it
        reads the worker's share of the URLs, and of ``length``.
        """
        return _Pass(self, self._sockets(), self._share_of_length())

    def close(self) -> None:
        """Close the sockets: what was not taken is lost, and passes end. Iterating again opens new ones. Idempotent."""
        if self._open is not None:
            opened, self._open = self._open, None
            opened.close()

    def __enter__(self) -> Self:
        """Return the data set; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the sockets behind: the copy opens its own."""
        return {**self.__dict__, "_open": None}

    def _sockets(self) -> PlainSockets[ReceivingSocket]:
        if self._open is not None and not self._open.is_ours:
            self.close()  # a fork's: nothing of the parent's is touched
        if self._open is None:
            make = partial(_socket, high_water=self._high_water, frame_bytes=self._frame_bytes)
            self._open = PlainSockets(self._share_of_urls(), make, owner=self, insecure=self._insecure)
        return self._open

    def _share_of_urls(self) -> list[PlainEndpoint]:
        """Return what this worker of a DataLoader reads: so that no batch comes twice, and nobody binds twice."""
        worker, workers = this_worker()
        if len(self._endpoints) >= workers:
            return self._endpoints[worker::workers]
        endpoint = self._endpoints[worker % len(self._endpoints)]
        if endpoint.binds or endpoint.pattern == "sub":
            why = "bind it" if endpoint.binds else "get every batch of it"
            raise ConfigError(
                f"{workers} workers of a DataLoader would each {why}: {endpoint.url}; use num_workers=0 (the batches "
                "are made elsewhere already), or as many URLs as workers"
            )
        return [endpoint]

    def _share_of_length(self) -> int | None:
        worker, workers = this_worker()
        return None if self._length is None else self._length // workers + (worker < self._length % workers)

    def _receive(self, sockets: PlainSockets[ReceivingSocket]) -> Any:
        """Return the next batch; see `__iter__`."""
        for _ in wait_for(sockets.poller, self._timeout, f"a batch from {sockets.urls}"):
            for _ in sockets.all:
                socket = sockets.all[self._next]
                self._next = (self._next + 1) % len(sockets.all)
                try:
                    message = socket.receive()
                    if message is not None:
                        batch = self._decode(*message, "single" if socket.endpoint.is_sctp else self._framing)
                        self.received += 1
                        return batch
                except TenbinError as error:
                    if self._on_error == "raise":
                        raise
                    self._skip(error)
        raise AssertionError("wait_for ends with an error alone")

    def _decode(self, sender: str, chunks: list[memoryview], framing: Framing) -> Any:
        try:
            if framing == "single" and len(chunks) > 1:
                raise TenbinError(f"its message has {len(chunks)} frames; its framing may be multipart, not single")
            if framing == "multipart" and len(chunks) == 1:
                raise TenbinError("its message has one frame; its framing may be single, not multipart")
            decoded = decode_list(chunks, self._infos) if len(chunks) > 1 else decode_buffer(chunks[0], self._infos)
        except TenbinError as error:
            raise TenbinError(f"{sender} sent what is no batch: {error}") from error
        if isinstance(decoded, tuple):
            return tuple(_tensor(array) for array in decoded[0]), decoded[1]
        return tuple(_tensor(array) for array in decoded)

    def _skip(self, error: TenbinError) -> None:
        if not self.skipped:
            log.warning("skipped a message: %s; `skipped` counts them", str(error))
        self.skipped += 1


class _Pass:
    """One pass over what arrives."""

    def __init__(self, dataset: PlainDataset, sockets: PlainSockets[ReceivingSocket], left: int | None) -> None:
        self._dataset, self._sockets, self._left = dataset, sockets, left

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if not self._sockets.is_ours:
            raise ConfigError("this pass is the parent's, whose sockets no fork may use; iterate the PlainDataset here")
        if self._left == 0 or self._sockets.closed:
            raise StopIteration
        batch = self._dataset._receive(self._sockets)
        if self._left is not None:
            self._left -= 1
        return batch


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    usable = array.flags.writeable and array.flags.aligned and array.nbytes >= _COPY_BELOW
    return torch.from_numpy(array if usable else np.array(array))


def _socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: PlainEndpoint, *, high_water: int, frame_bytes: int
) -> ReceivingSocket:
    if endpoint.is_sctp:
        return SctpReceiver(endpoint, high_water=high_water, message_bytes=frame_bytes)
    return ZeroMQReceiver(context, endpoint, high_water=high_water, frame_bytes=frame_bytes)
