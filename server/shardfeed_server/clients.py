"""Who has said hello to a server: each peer's job and rank, and when it was heard last. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

__all__ = ["Client", "Clients"]

_MOST_PEERS = 65_536
_MOST_CHARACTERS = 256
_HERE_SECONDS = 300.0


@dataclass(slots=True)
class Client:
    """One client: the job whose share it uses, its trainer's rank, and when it was heard last, in seconds."""

    job: str
    rank: int
    heard: float


class Clients:
    """The clients of one server, the least recently greeted forgotten where they are too many."""

    def __init__(self) -> None:
        """Know nobody."""
        self._clients: OrderedDict[bytes, Client] = OrderedDict()

    def greet(self, peer: bytes, job: str, rank: int, now: float) -> None:
        """Note who a peer is. Names are kept up to 256 characters: jobs that differ only beyond are one."""
        self._clients[peer] = Client(job[:_MOST_CHARACTERS], rank, now)
        self._clients.move_to_end(peer)
        if len(self._clients) > _MOST_PEERS:
            self._clients.popitem(last=False)

    def heard(self, peer: bytes, now: float) -> None:
        """Note that a peer said something."""
        client = self._clients.get(peer)
        if client is not None:
            client.heard = now

    def find(self, peer: bytes, now: float) -> Client:
        """Return who a peer is; one that never said hello is a job of its own."""
        return self._clients.get(peer) or Client(peer.hex(), 0, now)

    def jobs(self, now: float) -> list[str]:
        """Return the job of each client that was heard within the last five minutes."""
        return [client.job for client in self._clients.values() if now - client.heard <= _HERE_SECONDS]
