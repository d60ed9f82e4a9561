"""One server as a client sees it: connect, greet, converse, and again when the connection ends."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from msgspec import structs
from numpy.typing import NDArray

from shardfeed.borrowing import Borrowing, borrow
from shardfeed_wire.errors import (
    BrokenChannelError,
    ChannelError,
    EndpointError,
    MessageError,
    NobodyAnswersError,
    RefusedError,
    ShardfeedError,
    VersionMismatchError,
)
from shardfeed_wire.messages import (
    PROTOCOL_VERSION,
    Batch,
    Hello,
    Message,
    Refused,
    Seconds,
    Welcome,
    pack,
    unpack,
)
from shardfeed_wire.tenbin import encode_chunks
from shardfeed_wire.transport import Channel, Limits, Network

__all__ = ["Framing", "Greeting", "Peer", "PeerHandler"]

Framing: TypeAlias = Literal["multipart", "single"]

_LIMITS = Limits(frame_bytes=4 << 30, frames=65_536)
_TRY_SECONDS = 5.0
_FIRST_RETRY, _LONGEST_RETRY = 0.1, 2.0
_ASK_INDEXING = 0.25

log = logging.getLogger("shardfeed")


@dataclass(frozen=True, slots=True)
class Greeting:
    """How a client introduces itself to each server."""

    job: str
    rank: int
    software: str
    framing: Framing
    shared_memory: bool


class PeerHandler(Protocol):
    """Who is told what happens at a peer. All calls come in the event loop."""

    def welcomed(self, peer: Peer, welcome: Welcome) -> None:
        """Take a server's Welcome; raises RefusedError where it does not fit: the peer is then no use."""

    def received(self, peer: Peer, message: Message, tensors: list[NDArray[Any]]) -> None:
        """Take a message; raises MessageError where it makes no sense."""

    def lost(self, peer: Peer, reason: ShardfeedError) -> None:
        """The connection ended, or never came to be."""


class Peer:
    """Keeps one connection to one address, made anew with a growing pause whenever it ends."""

    def __init__(self, url: str, network: Network, greeting: Greeting, handler: PeerHandler) -> None:
        """Do nothing yet; `run` does it."""
        self.url = url
        self.last_error: ShardfeedError | None = None
        self.tried = asyncio.Event()
        """Set once it is known whether the server is there."""
        self._network, self._greeting, self._handler = network, greeting, handler
        self._channel: Channel | None = None
        self._borrowing: Borrowing | None = None
        self._borrows = greeting.shared_memory
        self._outbox: asyncio.Queue[list[Any]] = asyncio.Queue()

    def send(self, message: Message, tensors: list[NDArray[Any]] | None = None) -> None:
        """Send a message soon; it is lost with the connection. Does not block."""
        chunks = pack(message, tensors or [])
        self._outbox.put_nowait([encode_chunks(chunks)] if self._greeting.framing == "single" else chunks)

    def drop(self) -> None:
        """Close the connection; `run` makes a new one."""
        if self._channel is not None:
            self._channel.close()

    async def run(self) -> None:
        """Keep the connection until cancelled. Raises EndpointError where the first try shows that none can be made."""
        pause = _FIRST_RETRY
        while True:
            try:
                async with asyncio.timeout(_TRY_SECONDS) as patience:
                    self._channel = await self._network.connect(self.url, _LIMITS)
                    self._outbox = asyncio.Queue()
                    welcome = await self._greet(self._channel, patience)
                if welcome.shared is not None and self._borrows:
                    self._borrowing = borrow(welcome.shared)
                self._handler.welcomed(self, welcome)
                self.last_error = None
                self.tried.set()
                pause = _FIRST_RETRY
                await self._converse(self._channel)
            except TimeoutError:
                self._ended(
                    NobodyAnswersError(
                        f"{self.url}: it takes connections but does not answer; is it a shardfeed server?"
                    )
                )
            except MessageError as error:
                self._ended(RefusedError(f"{self.url}: what listens there is not a shardfeed server ({error})"))
            except EndpointError as error:
                if not self.tried.is_set():  # this machine cannot do it: to try again would hide that for a while
                    raise
                self._ended(error)
            except ShardfeedError as error:
                self._ended(error)
            finally:
                if self._channel is not None:
                    self._channel.close()
                    self._channel = None
                if self._borrowing is not None:
                    self._borrowing.close()
                    self._borrowing = None
            await asyncio.sleep(pause)
            pause = min(_LONGEST_RETRY, 2 * pause)

    def _ended(self, error: ShardfeedError) -> None:
        self.last_error = error
        self._handler.lost(self, error)
        self.tried.set()

    async def _greet(self, channel: Channel, patience: asyncio.Timeout) -> Welcome:
        greeting = self._greeting
        while True:
            self.send(Hello(version=PROTOCOL_VERSION, job=greeting.job, rank=greeting.rank, software=greeting.software))
            await channel.send(self._outbox.get_nowait())
            message, _ = unpack(await channel.receive())
            match message:
                case Welcome(version=version) if abs(version - PROTOCOL_VERSION) > 1:
                    raise VersionMismatchError(
                        f"{self.url} speaks version {version} of the protocol ({message.software}), this client "
                        f"version {PROTOCOL_VERSION} ({greeting.software}); they may differ by one: upgrade the older"
                    )
                case Welcome():
                    return message
                case Refused(reason="version_differs"):
                    raise VersionMismatchError(f"{self.url}: {message.message}")
                case Refused(reason="indexing" | "draining" | "busy"):
                    self._ended(NobodyAnswersError(f"{self.url}: {message.message}"))
                    patience.reschedule(asyncio.get_running_loop().time() + _TRY_SECONDS)
                    await asyncio.sleep(_ASK_INDEXING)
                case Refused():
                    raise RefusedError(f"{self.url}: {message.message}")
                case _:
                    raise MessageError(f"it answers Hello with {type(message).__name__}")

    async def _converse(self, channel: Channel) -> None:
        running = [asyncio.create_task(self._write(channel)), asyncio.create_task(self._read(channel))]
        if self._borrowing is not None:
            running.append(asyncio.create_task(self._read_lent(self._borrowing)))
        try:
            while True:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                    running.remove(task)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _read(self, channel: Channel) -> None:
        while True:
            message, tensors = unpack(await channel.receive())
            self._handler.received(self, message, tensors)
            del message, tensors  # an error's traceback, kept to be shown, would hold their memory

    async def _read_lent(self, borrowing: Borrowing) -> None:
        """Take what is lent until the server lends no more: it then sends, and may write to what it has lent."""
        try:
            while (lent := await borrowing.receive()) is not None:
                message, tensors = unpack([lent])
                said = borrowing.lent
                if isinstance(message, Batch) and said is not None and said.request is not None:
                    message = structs.replace(message, request=said.request, seconds=said.seconds or Seconds())
                self._handler.received(self, message, tensors)
                del lent, message, tensors
        except BrokenChannelError as error:  # what may be lost is asked for anew where the connection ends
            self._borrows = borrowing.maps
            raise BrokenChannelError(f"{self.url}: {error}") from error
        finally:
            borrowing.close()

    async def _write(self, channel: Channel) -> None:
        try:
            while True:
                await channel.send(await self._outbox.get())
        except ChannelError:
            channel.close()  # the reader says why
