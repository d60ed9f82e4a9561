"""The front: it takes what clients say, refuses what cannot be had, and has the rest answered (`answering`)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed_server.answering import Answering, Request
from shardfeed_server.clients import Clients
from shardfeed_server.conduct import SENSELESS_COST, USUAL_PATIENCE, Conduct, Patience, cost_of
from shardfeed_server.events import logger
from shardfeed_server.figures import Figures, Standing
from shardfeed_server.lending import Lending
from shardfeed_server.replies import Replies
from shardfeed_server.request_checks import what_is_wrong
from shardfeed_server.workers import Workers
from shardfeed_wire import messages
from shardfeed_wire.errors import ClosedChannelError, MessageError
from shardfeed_wire.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Get,
    GetManifest,
    Hello,
    Message,
    Ping,
    Pong,
    Refused,
    StreamInfo,
    Waited,
    Welcome,
    pack,
    unpack,
)
from shardfeed_wire.tenbin import encode_chunks
from shardfeed_wire.transport import Limits, Listener
from webdataset.manifest import Manifest

__all__ = ["REQUEST_LIMITS", "ServedStream", "Service"]

REQUEST_LIMITS = Limits(
    frame_bytes=1 << 20, frames=64, messages=256, message_bytes=4 << 20, silent_seconds=USUAL_PATIENCE.silent
)
"""Requests are small; what is larger is none."""

_MESSAGES_AT_ONCE = 32

_FLOODED = "it sends more than a client does: Hello, requests that are refused, or the like"

log = logger("shardfeed.server")


@dataclass(frozen=True, eq=False)
class ServedStream:
    """A stream as the front knows it: what clients are told, and the manifest behind it."""

    info: StreamInfo
    manifest: Manifest

    @cached_property
    def tensors(self) -> list[NDArray[Any]]:
        """What a Manifest message brings."""
        names = [name.encode("utf-8", "surrogateescape") for name in self.manifest.names]
        blocks = np.bincount(self.manifest.block_shard, minlength=len(names)).astype(np.uint32)
        offsets = np.cumsum([0, *map(len, names)], dtype=np.int64)
        return [self.manifest.block_sizes, blocks, np.frombuffer(b"".join(names), np.uint8), offsets]


class Service:
    """One server's front. All of it runs in one event loop, which only moves messages."""

    def __init__(
        self,
        name: str,
        *,
        software: str,
        send_bytes: int,
        queue_requests: int,
        answer_cache_bytes: int,
        lending: Lending | None,
        patience: Patience,
    ) -> None:
        """Serve nothing yet; until `open` clients hear ``indexing`` and `progress`."""
        self.name, self.nonce = name, secrets.token_hex(8)
        self.progress = "starting"
        self._software, self._lending = software, lending
        self._workers: Workers | None = None
        self.may_read: Callable[[str | None, str], bool] = lambda _public, _stream: True
        """Whether the client with a public key (None where it had to show none) may read a stream."""
        self.trusted: Sequence[Listener] = ()
        """The listeners that only the server's own processes reach, which may read every stream."""
        self._streams: dict[str, ServedStream] = {}
        self._open = self._draining = False
        self._clients, self._figures, self._conduct, self._replies = Clients(), Figures(), Conduct(), Replies()
        self._answering = Answering(
            send_bytes=send_bytes,
            queue_requests=queue_requests,
            answer_cache_bytes=answer_cache_bytes,
            lending=lending,
            figures=self._figures,
            patience=patience.unread,
            refuse=lambda request, refused: self._reply(request.listener, request.peer, request.single, refused),
            settled=self._conduct.settled,
        )

    def open(self, workers: Workers, streams: Sequence[ServedStream]) -> None:
        """Begin to answer, or from now on for these streams. The workers must be started.

        What earlier workers were asked they still have to answer; see `answered_by`.
        """
        workers.on_death = self._figures.worker_died
        self._workers, self._streams = workers, {stream.info.name: stream for stream in streams}
        self._conduct.workers = workers.count
        self._open = True
        self._answering.hand_to(workers)

    async def answered_by(self, workers: Workers) -> None:
        """Return when everything that these workers were to answer is answered and sent."""
        await self._answering.answered_by(workers)

    def say_progress(self, progress: str) -> None:
        """Let clients and probes hear how far the start is."""
        self.progress = progress

    @property
    def unready(self) -> str | None:
        """Why requests are not answered, None where they are."""
        return "draining" if self._draining else None if self._open else self.progress

    def report(self) -> tuple[Standing, Figures]:
        """Return how the server stands and a copy of its figures; see `http.Reporter`."""
        now = time.monotonic()
        standing = Standing(
            name=self.name,
            software=self._software,
            ready=self.unready is None,
            workers=0 if self._workers is None else self._workers.count,
            queued=self._answering.queued,
            unsent=self._answering.unsent,
            kept=self._answering.kept,
            clients=tuple(self._figures.label(job, now) for job in self._clients.jobs(now)),
        )
        return standing, self._figures.snapshot(now)

    async def serve(self, listener: Listener) -> None:
        """Take messages from a listener until it is closed.

        A message at which the front fails costs its sender what a senseless one does, and nobody else anything; where
        the listener itself fails, that is raised.
        """
        received = 0
        with contextlib.suppress(ClosedChannelError):
            while True:
                peer, chunks = await listener.receive()
                try:
                    message, tensors = unpack(chunks)
                except MessageError:
                    if not self._conduct.spend(peer, SENSELESS_COST, time.monotonic()):
                        listener.drop(peer, "it sent what is no message of the protocol")
                    continue  # silence tells a stranger nothing
                try:
                    self._received(listener, peer, len(chunks) == 1, message, tensors)
                except Exception as error:
                    self._failed(listener, peer, error)
                received += 1
                if not received % _MESSAGES_AT_ONCE:
                    await asyncio.sleep(0)  # messages that keep coming must not keep answers from going

    async def drain(self, patience: float) -> None:
        """Refuse new requests and return when those under way are answered, or after ``patience`` seconds."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._answering.finished()

    async def close(self) -> None:
        """Stop at once what is still under way."""
        await self._answering.close()
        await self._replies.close()

    def _failed(self, listener: Listener, peer: bytes, error: Exception) -> None:
        """Log what went wrong at a message that made sense."""
        if self._conduct.spend(peer, SENSELESS_COST, time.monotonic()):
            log.error("the front failed at a message; this is a defect", exc_info=error)
        else:  # nor does it fill the log
            listener.drop(peer, "the front fails at what it sends")

    # Requests

    def _received(
        self, listener: Listener, peer: bytes, single: bool, message: Message, tensors: list[NDArray[Any]]
    ) -> None:
        now = time.monotonic()
        self._clients.heard(peer, now)
        if not isinstance(message, Get) and not self._conduct.spend(peer, cost_of(message), now):
            listener.drop(peer, _FLOODED)
            return
        match message:
            case Hello():
                self._reply(listener, peer, single, self._greet(listener, peer, message))
            case Ping(number=number):
                self._reply(listener, peer, single, Pong(number=number, nonce=self.nonce))
            case Get():
                refused = self._queue_up(listener, peer, single, message, tensors)
                if refused is not None and self._conduct.spend(peer, 1, now):
                    self._reply(listener, peer, single, refused)
                elif refused is not None:
                    listener.drop(peer, _FLOODED)
            case GetManifest():
                self._reply(listener, peer, single, *self._manifest(self._seen_by(listener, peer), message))
            case Cancel(requests=requests):
                self._answering.cancel(peer, set(requests))
            case _:
                pass  # a server's message; not for us

    def _reply(
        self, listener: Listener, peer: bytes, single: bool, message: Message, tensors: Sequence[NDArray[Any]] = ()
    ) -> None:
        chunks = pack(message, tensors)
        self._replies.send(listener, peer, [encode_chunks(chunks)] if single else chunks)

    def _seen_by(self, listener: Listener, peer: bytes) -> dict[str, ServedStream]:
        """Return the streams that a peer may read; of the others it does not learn that they are there."""
        if listener in self.trusted:
            return self._streams
        public = listener.user(peer)
        return {name: stream for name, stream in self._streams.items() if self.may_read(public, name)}

    def _greet(self, listener: Listener, peer: bytes, hello: Hello) -> Message:
        if abs(hello.version - PROTOCOL_VERSION) > 1:
            text = (
                f"this server speaks version {PROTOCOL_VERSION} of the protocol ({self._software}), the client version "
                f"{hello.version} ({hello.software}); versions may differ by one: upgrade the older side"
            )
            return Refused(request=0, reason="version_differs", message=text)
        if self._draining:
            return Refused(request=0, reason="draining", message="the server is shutting down")
        if self._workers is None:
            return Refused(request=0, reason="indexing", message=self.progress)
        self._clients.greet(peer, hello.job, hello.rank, time.monotonic())
        return Welcome(
            version=PROTOCOL_VERSION,
            server=self.name,
            nonce=self.nonce,
            workers=self._workers.count,
            streams=tuple(stream.info for stream in self._seen_by(listener, peer).values()),
            software=self._software,
            shared=None if self._lending is None else self._lending.offer(peer),
        )

    def _refusal(
        self, streams: dict[str, ServedStream], request: int, stream: str, data: str, recipe: str | None
    ) -> Refused | None:
        """Return why a request for a stream cannot be met by one of ``streams``, if so."""
        if self._draining:
            return Refused(request=request, reason="draining", message="the server is shutting down")
        if not self._open:
            return Refused(request=request, reason="indexing", message=self.progress)
        served = streams.get(stream)
        if served is None:
            names = ", ".join(sorted(streams)) or "none for this client"
            return Refused(
                request=request, reason="unknown_stream", message=f"no stream {stream!r} here; there are: {names}"
            )
        if data != served.info.data:
            text = f"stream {stream!r} has data {served.info.data[:12]} here, not {data[:12]}"
            return Refused(request=request, reason="data_differs", message=text)
        if recipe is not None and recipe != served.info.recipe:
            text = f"stream {stream!r} has recipe {served.info.recipe[:12]} here, not {recipe[:12]}"
            return Refused(request=request, reason="recipe_differs", message=text)
        return None

    def _manifest(self, streams: dict[str, ServedStream], asked: GetManifest) -> tuple[Message, list[NDArray[Any]]]:
        refused = self._refusal(streams, asked.request, asked.stream, asked.data, None)
        if refused is not None:
            return refused, []
        served = streams[asked.stream]
        samples = served.manifest.samples
        return messages.Manifest(request=asked.request, data=asked.data, samples=samples), served.tensors

    def _queue_up(
        self, listener: Listener, peer: bytes, single: bool, get: Get, tensors: list[NDArray[Any]]
    ) -> Refused | None:
        """Let a request wait for its turn, or return why it does not."""
        refused = self._refusal(self._seen_by(listener, peer), get.request, get.stream, get.data, get.recipe)
        if refused is not None:
            return refused
        wrong = what_is_wrong(get, tensors, self._streams[get.stream].manifest.block_sizes)
        if wrong:
            return Refused(request=get.request, reason="bad_request", message=wrong)
        block, index = tensors[:2]
        now = time.monotonic()
        client = self._clients.find(peer, now)
        if isinstance(get.waited, Waited):
            self._figures.waited(client.job, client.rank, get.waited, now)
        workers = self._workers
        assert workers is not None, "there are streams, so somebody answers for them"
        request = Request(listener, peer, single, get, block.tobytes(), index.tobytes(), len(block), now, workers)
        if not self._conduct.may_ask(peer) or not self._answering.take(client.job, request):
            self._figures.refused_busy(get.stream, client.job, now)
            return Refused(request=get.request, reason="busy", message="the queue is full")
        self._conduct.asked(peer)
        return None
