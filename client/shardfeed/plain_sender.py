"""`PlainSender`: batches of any Python iterator sent as a plain stream, for Tensorcom programs and `PlainDataset`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import zmq

from shardfeed.peer import Framing
from shardfeed.plain_sctp import RETRY_SECONDS, SctpSender
from shardfeed.plain_sockets import PlainSockets, SendingSocket, check_options
from shardfeed.plain_waiting import wait_for
from shardfeed.plain_zeromq import ZeroMQSender
from shardfeed_wire.errors import ClosedChannelError, ConfigError, TenbinError
from shardfeed_wire.plain import PlainEndpoint, expand_plain
from shardfeed_wire.tenbin import encode_chunks, encode_list

__all__ = ["PlainSender"]


class PlainSender:
    """Sends batches with no protocol around them: each is one message of tenbin arrays.

    ``zpush`` and ``zrpush`` give each batch to one receiver, in turn, and wait while none takes it. ``zpub``
    and ``zrpub`` give it to all who have subscribed, and lose it to those who are too slow. ``sctp`` is a push
    to whoever binds that address, each batch an association of its own. Not for several threads at once, nor for
    a process that was forked from the one that made it.
    """

    def __init__(
        self,
        url: str | Iterable[str],
        *,
        framing: Framing = "multipart",
        infos: bool | Sequence[str] = False,
        high_water: int = 4,
        timeout: float | None = 300.0,
        insecure: bool = False,
    ) -> None:
        """Bind or connect, as the URL says. Does not wait for a receiver.

        Args:
            url: ``zpush://host:port``, ``zpub+ipc:///path``, ``sctp://host:port`` and the like; braces or several
                URLs: to all of them.
            framing: ``"multipart"`` (one frame a header and one an array) or ``"single"`` (one frame a message), of
                ZeroMQ; over SCTP a message is always one buffer.
            infos: names of the arrays: True: a batch is a dict, and its keys are sent; a sequence: these names.
                A name has at most 8 ASCII characters.
            high_water: batches that wait here for each receiver; the network holds some more. Over SCTP it is
                one: the next is sent when the receiver's kernel has all of it.
            timeout: seconds after which it is an error that nobody takes a batch; None waits for ever.
            insecure: allow to bind an address that other machines reach. Nothing is encrypted, and
                receivers are not authenticated.

        Raises ConfigError for an argument that makes no sense, and EndpointError for a URL that cannot be used.
        """
        check_options(framing=framing, high_water=high_water, timeout=timeout)
        self._framing, self._infos, self._timeout = framing, infos, timeout
        self.sent = 0
        """Batches handed over. Those at the end may yet be lost, if the receiver goes."""
        self._unpublished = 0
        self._sockets = PlainSockets(
            expand_plain(url, sends=True),
            partial(_socket, high_water=high_water),
            owner=self,
            insecure=insecure,
        )
        tries_anew = any(socket.endpoint.is_sctp for socket in self._sockets.all)
        self._again = RETRY_SECONDS if tries_anew else None
        self._next = 0

    @property
    def urls(self) -> list[str]:
        """The URLs, expanded, with the ports that were taken where port 0 was asked for."""
        return [socket.url for socket in self._sockets.all]

    @property
    def dropped(self) -> int:
        """Batches that were published and that some receiver, or everybody for want of one, did not get.

        Over SCTP those that were under way when their receiver went.
        """
        return self._unpublished + sum(socket.lost for socket in self._sockets.all)

    def send(self, batch: Any) -> None:
        """Send one batch: a sequence or dict of numpy arrays or torch tensors, or one of these alone.

        Blocks while no receiver of a push has room. What is sent is copied. Raises TenbinError for what
        tenbin cannot hold, StarvedError after ``timeout``, ClosedChannelError after `close`, and ConfigError for a
        batch that is larger than one SCTP message may be here, and in a process that did not make the sender.
        """
        if self._sockets.closed:
            raise ClosedChannelError("the sender was closed")
        if not self._sockets.is_ours:
            urls = ", ".join(socket.endpoint.url for socket in self._sockets.all)
            raise ConfigError(
                f"the PlainSender to {urls} belongs to the process that made it, of which this one is a fork; make one "
                "in each process that sends"
            )
        chunks = self._encode(batch)
        if self._sockets.all[0].publishes:
            arrived = [socket.publish(chunks) for socket in self._sockets.all]
            self._unpublished += not all(arrived)
        elif not self._push(chunks):
            what = f"a receiver to take a batch from {self._sockets.urls}"
            for _ in wait_for(self._sockets.poller, self._timeout, what, self._again):
                if self._push(chunks):
                    break
        self.sent += 1

    def send_all(self, batches: Iterable[Any]) -> None:
        """Send every batch of an iterable, such as a DataLoader; see `send`."""
        for batch in batches:
            self.send(batch)

    def close(self, linger: float = 30.0) -> None:
        """Wait up to ``linger`` seconds until what was sent is on its way, and close. Idempotent."""
        self._sockets.close(linger)

    def __enter__(self) -> Self:
        """Return the sender; leaving the block closes it, and after an exception does so at once."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close."""
        if kind is None:
            self.close()
        else:
            self.close(linger=0.0)

    def _push(self, chunks: Sequence[Any]) -> bool:
        """Hand a message to the next socket that has room."""
        sockets = self._sockets.all
        for _ in sockets:
            socket = sockets[self._next]
            self._next = (self._next + 1) % len(sockets)
            if socket.push(chunks):
                return True
        return False

    def _encode(self, batch: Any) -> list[Any]:
        arrays, names = self._arrays(batch)
        try:
            chunks: list[Any] = encode_list(arrays, names)
        except TenbinError as error:
            raise TenbinError(f"a batch for {self._sockets.urls}: {error}") from error
        if not chunks:
            raise TenbinError(f"a batch for {self._sockets.urls} holds no arrays, and is no message")
        return chunks if self._framing == "multipart" else [encode_chunks(chunks)]

    def _arrays(self, batch: Any) -> tuple[list[Any], Sequence[str] | None]:
        names = None if isinstance(self._infos, bool) else self._infos
        if isinstance(batch, Mapping):
            return list(batch.values()), list(batch) if self._infos is True else names
        if self._infos is True:
            raise ConfigError(
                f"infos=True sends the keys of a dict, and a batch is a {type(batch).__name__}; name them"
            )
        return list(batch) if isinstance(batch, list | tuple) else [batch], names


def _socket(context: zmq.Context[zmq.Socket[bytes]], endpoint: PlainEndpoint, *, high_water: int) -> SendingSocket:
    return SctpSender(endpoint) if endpoint.is_sctp else ZeroMQSender(context, endpoint, high_water=high_water)
