"""One question for a manifest, put to one server after another, and the first answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from shardfeed.manifest_cache import ClientManifest, parse_manifest
from shardfeed_wire.errors import MessageError, RefusedError
from shardfeed_wire.messages import GetManifest, Manifest, Refused, StreamInfo

__all__ = ["ManifestQuery"]

_NUMBER = (1 << 63) - 1
"""Its request number: samples are asked for with small ones, and only one manifest at a time."""


class ManifestQuery:
    """Asks for the manifest behind a stream, which is the same from any server."""

    def __init__(self, stream: str, info: StreamInfo) -> None:
        """Make the question; whoever has the connections sends ``message``."""
        self._info = info
        self.message = GetManifest(request=_NUMBER, stream=stream, data=info.data)
        self._asked: set[str] = set()
        self._not_now: set[str] = set()
        self._news = asyncio.Event()
        self._answer: tuple[str, Refused | Manifest, list[NDArray[Any]]] | None = None

    def next_of(self, up: Iterable[str]) -> str | None:
        """Return who of those that are up is to be asked now, and count it as asked; None where all have been."""
        url = next((url for url in up if url not in self._asked), None)
        if url is not None:
            self._asked.add(url)
        return url

    def ask_again(self) -> bool:
        """Count those that could not answer as not asked; False where there are none."""
        self._asked -= self._not_now
        some = bool(self._not_now)
        self._not_now.clear()
        return some

    async def news(self, silence: float) -> bool:
        """Wait for up to ``silence`` seconds; return whether a server has answered meanwhile, be it that it cannot."""
        try:
            async with asyncio.timeout(silence):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def result(self) -> tuple[ClientManifest, list[NDArray[Any]]] | None:
        """Return the manifest, and the tensors that it came as; None where there is no answer yet.

        Raises RefusedError where a server refuses for good or answers nonsense.
        """
        if self._answer is None:
            return None
        url, message, tensors = self._answer
        if isinstance(message, Refused):
            raise RefusedError(f"{url}: {message.message}")
        try:
            return parse_manifest(tensors, self._info), tensors
        except MessageError as error:
            raise RefusedError(f"{url}: {error}") from error

    def answered(self, url: str, message: Refused | Manifest, tensors: list[NDArray[Any]]) -> None:
        """Take a server's answer; after one that counts, no other does."""
        if isinstance(message, Refused) and message.reason in ("busy", "indexing", "draining"):
            self._not_now.add(url)
        elif self._answer is None:
            self._answer = url, message, tensors
        self._news.set()

    def lost(self, url: str) -> None:
        """Note that a server is gone; it is asked anew where it comes back."""
        if url in self._asked:
            self._asked.discard(url)
            self._not_now.discard(url)
            self._news.set()
