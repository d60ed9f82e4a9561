"""The servers that are up, which of them to ask, and what is known of those that went. Pure: time is an argument."""

from __future__ import annotations

from collections.abc import Iterator

from shardfeed.routing import Piece, Server

__all__ = ["Fleet"]

_ABOUT_AS_GOOD = 1.3
"""A server that is expected to take so many times the quickest one's time is about as good."""


class Fleet:
    """All servers that a fetcher knows of, by name."""

    def __init__(self) -> None:
        """Know of none."""
        self._up: dict[str, Server] = {}
        self._gone: dict[str, Server] = {}
        self._last_words: dict[str, str] = {}
        self.changes = 0
        """How often a server has come or gone."""

    def __iter__(self) -> Iterator[Server]:
        """Go through those that are up now, in the order in which they came."""
        return iter(list(self._up.values()))

    def __getitem__(self, name: str) -> Server:
        """Return one that is up."""
        return self._up[name]

    def get(self, name: str) -> Server | None:
        """Return one by name; None where it is not up."""
        return self._up.get(name)

    def joined(self, server: Server) -> None:
        """Note that a server is up."""
        self._up[server.name] = server
        self.changes += 1
        self._gone.pop(server.name, None)
        self._last_words.pop(server.name, None)

    def left(self, name: str, reason: str) -> bool:
        """Note that a server is not up any more, and why; False where it was not."""
        self._last_words[name] = reason
        server = self._up.pop(name, None)
        if server is None:
            return False
        self._gone[name] = server
        self.changes += 1
        return True

    def said(self, name: str, words: str) -> None:
        """Note the last that a server said instead of an answer."""
        self._last_words[name] = words

    @property
    def words(self) -> dict[str, str]:
        """The last word of each server, of those that went too."""
        return dict.fromkeys(self._up, "up, with no useful answer") | self._last_words

    def once_read(self, shards: frozenset[int]) -> list[str]:
        """Return who went and could read some of these shards."""
        return [name for name, server in self._gone.items() if server.reads_some(shards)]

    def any_free(self, now: float) -> bool:
        """Whether any may be asked for something."""
        return any(server.free(now) for server in self._up.values())

    def capable(self, piece: Piece) -> list[str]:
        """Return who can read all of a piece, whether well or not."""
        return [server.name for server in self._up.values() if server.can_do(piece)]

    def well(self, piece: Piece, now: float) -> list[Server]:
        """Return who answers, and can do a piece as far as is known."""
        return [
            server
            for server in self._up.values()
            if server.is_well(now) and server.can_do(piece) and piece.may_go_to(server.name, now)
        ]

    def choose(self, piece: Piece, now: float, *, first: bool) -> Server | None:
        """Return the server to ask: that expected to finish first, or the preferred one where it is about as good.

        None where that one has all the requests that it takes: to wait for it is quicker than to ask a slow one.
        ``first`` says that the trainer waits for the piece: no server is tried with it that may be quicker by now.
        """
        expected = {server.name: server.finish(piece.rows, now) for server in self.well(piece, now)}
        if not expected:
            return None
        limit = _ABOUT_AS_GOOD * min(expected.values())
        free = [self._up[name] for name in expected if self._up[name].free(now)]
        if not first:
            for server in free:
                if server.has_rested(piece.rows, now):
                    return server
        good = [server for server in free if expected[server.name] <= limit]
        preferred = (server for server in good if server.name == piece.preferred)
        return next(preferred, min(good, key=lambda server: expected[server.name], default=None))
