"""How much a peer may ask of the front that is no work for workers, and how much of what is. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from shardfeed_wire.messages import Cancel, GetManifest, Message

__all__ = ["SENSELESS_COST", "USUAL_PATIENCE", "Conduct", "Patience", "cost_of"]

_BURST = 2_000.0
_A_SECOND = 200.0
"""Tokens that a peer has at first, and gets back a second: a client at work needs a few."""

_MOST_PEERS = 65_536
_LEAST_OUTSTANDING = 128
_MANIFEST_COST = 20
SENSELESS_COST = 100.0
"""Of a message that makes no sense: a newer client may send some that are unknown here."""

_CANCELS_A_TOKEN = 256


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a server waits for a peer before it ends the connection.

    ``silent``: for its first message, and for any message from its first bytes to its last; ``unread``: for an
    answer to be read, and a second more for each MB that waits for its job.
    """

    silent: float = 30.0
    unread: float = 60.0


USUAL_PATIENCE = Patience()


class Conduct:
    """The peers of a server, each with tokens for messages that the front answers itself, and a number of requests."""

    def __init__(self) -> None:
        """Know nobody."""
        self.workers = 0
        """How many answer requests: peers are told to have at most 2 x workers + 1 outstanding."""
        self._tokens: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._outstanding: Counter[bytes] = Counter()

    def spend(self, peer: bytes, cost: float, now: float) -> bool:
        """Take tokens from a peer; False where it has not enough."""
        tokens, since = self._tokens.pop(peer, (_BURST, now))
        tokens = min(_BURST, tokens + (now - since) * _A_SECOND) - cost
        self._tokens[peer] = (max(tokens, 0.0), now)
        if len(self._tokens) > _MOST_PEERS:
            self._tokens.popitem(last=False)
        return tokens >= 0

    def may_ask(self, peer: bytes) -> bool:
        """Say whether a peer may have one more request waiting or under way."""
        return self._outstanding[peer] < max(_LEAST_OUTSTANDING, 4 * self.workers)

    def asked(self, peer: bytes) -> None:
        """Count a request."""
        self._outstanding[peer] += 1

    def settled(self, peer: bytes) -> None:
        """Count a request as over."""
        self._outstanding[peer] -= 1
        if self._outstanding[peer] <= 0:
            del self._outstanding[peer]


def cost_of(message: Message) -> float:
    """Return the tokens that a message takes which the front answers itself."""
    match message:
        case GetManifest():
            return _MANIFEST_COST
        case Cancel(requests=requests):
            return 1 + len(requests) / _CANCELS_A_TOKEN
        case _:
            return 1
