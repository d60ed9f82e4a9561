"""A file on an HTTP server as a stream that resumes where a transfer broke, or raises."""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from typing import Any

from shardfeed_wire.errors import ShardError
from webdataset.remote import public_url

__all__ = ["HttpStream"]

_TIMEOUT = 60.0
_ATTEMPTS = 6
_FIRST_PAUSE = 0.1
_WORTH_RETRYING = (408, 425, 429, 500, 502, 503, 504)
_PIECE = 1 << 20


class HttpStream(io.RawIOBase):
    """Reads a URL in order; a transfer that breaks is resumed at its byte, a few times in a row."""

    def __init__(self, url: str) -> None:
        """Ask for the URL. Blocks until the answer begins.

        :raises ShardError: it cannot be had; the HTTP status or the network's error is in the message.
        """
        super().__init__()
        self._url = url
        self._at = 0
        self._size: int | None = None
        self._version: str | None = None
        self._failures = 0
        self._response: http.client.HTTPResponse | None = None
        self._connect()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, at most a bufferful. Blocks, while resuming too.

        :raises ShardError: the transfer broke too often in a row, or the file changed meanwhile.
        """
        while True:
            try:
                if self._response is None:
                    self._connect()
                assert self._response is not None
                # Not readinto: where a transfer breaks, that loses what came before.
                data = self._response.read1(len(buffer))
            except (OSError, http.client.HTTPException) as error:
                self._failed(error)
                continue
            if data:
                self._failures = 0
            elif self._size is not None and self._at < self._size:
                self._failed(EOFError(f"it ended at byte {self._at} of {self._size}"))
                continue
            buffer[: len(data)] = data
            self._at += len(data)
            return len(data)

    def close(self) -> None:
        """End the transfer."""
        super().close()
        self._drop()

    def _connect(self) -> None:
        """Ask for the rest of the file, until it is answered."""
        while self._response is None:
            try:
                self._response = self._ask()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _WORTH_RETRYING:
                    raise self._fault(f"HTTP status {error.code} {error.reason}") from error
                self._failed(error)
            except (OSError, http.client.HTTPException) as error:
                self._failed(error)

    def _ask(self) -> http.client.HTTPResponse:
        headers = {"Accept-Encoding": "identity", "User-Agent": "shardfeed"}
        if self._at:
            headers["Range"] = f"bytes={self._at}-"
        response: http.client.HTTPResponse = urllib.request.urlopen(
            urllib.request.Request(self._url, headers=headers), timeout=_TIMEOUT
        )
        try:
            self._begin(response)
        except BaseException:
            response.close()
            raise
        return response

    def _begin(self, response: http.client.HTTPResponse) -> None:
        """Check that an answer goes on where the last one broke, and bring it there."""
        length = response.headers.get("Content-Length")
        start = self._at if response.status == 206 else 0
        size = start + int(length) if length is not None else None
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if self._at and (size, version) != (self._size, self._version):
            raise self._fault("the file changed while it was read")
        self._size, self._version = size, version
        if response.status == 206 and not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            raise self._fault(f"asked for bytes from {start}, the server sent others")
        # A server without ranges sends all again.
        left = self._at - start
        while left > 0:
            skipped = len(response.read(min(left, _PIECE)))
            if skipped == 0:
                raise http.client.IncompleteRead(b"", left)
            left -= skipped

    def _failed(self, error: Exception) -> None:
        """Count a failure and wait a little, or give up."""
        self._drop()
        self._failures += 1
        if self._failures >= _ATTEMPTS:
            raise self._fault(f"the transfer broke {self._failures} times at byte {self._at}: {error}") from error
        time.sleep(_FIRST_PAUSE * 2 ** (self._failures - 1))

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _fault(self, reason: str) -> ShardError:
        name = public_url(self._url)  # a signed URL's query is a secret
        return ShardError(f"shard {name}: {reason}", shard=name)
