"""One question for a manifest, and its answer."""

from __future__ import annotations

import asyncio
from typing import Any

from numpy.typing import NDArray

from shardfeed.manifest_cache import ClientManifest, parse_manifest
from shardfeed_wire.errors import MessageError, NobodyAnswersError, RefusedError
from shardfeed_wire.messages import GetManifest, Manifest, Refused, StreamInfo

__all__ = ["ManifestQuery"]

_NUMBER = (1 << 63) - 1
"""Its request number: samples are asked for with small ones, and only one manifest at a time."""


class ManifestQuery:
    """Asks one server for the manifest behind a stream."""

    def __init__(self, url: str, stream: str, info: StreamInfo) -> None:
        """Make the question; whoever has the connection sends ``message``."""
        self._url, self._info = url, info
        self.message = GetManifest(request=_NUMBER, stream=stream, data=info.data)
        self._answer: asyncio.Future[list[NDArray[Any]]] = asyncio.get_running_loop().create_future()

    async def result(self) -> tuple[ClientManifest, list[NDArray[Any]]]:
        """Return the manifest, and the tensors that it came as. Blocks until there is an answer.

        Raises RefusedError where the server refuses for good or answers nonsense, and
        NobodyAnswersError where it may be asked again, or another one.
        """
        tensors = await self._answer
        try:
            return parse_manifest(tensors, self._info), tensors
        except MessageError as error:
            raise RefusedError(f"{self._url}: {error}") from error

    def answered(self, message: Refused | Manifest, tensors: list[NDArray[Any]]) -> None:
        """Take the answer; a second one does not count."""
        if self._answer.done():
            return
        match message:
            case Manifest():
                self._answer.set_result(tensors)
            case Refused(reason="busy" | "indexing" | "draining"):
                self._answer.set_exception(NobodyAnswersError(f"{self._url}: {message.message}"))
            case Refused():
                self._answer.set_exception(RefusedError(f"{self._url}: {message.message}"))

    def lost(self, url: str, reason: str) -> None:
        """Note that a server is gone."""
        if url == self._url and not self._answer.done():
            self._answer.set_exception(NobodyAnswersError(reason))
