"""Byte ranges of files on HTTP servers, over connections that are kept alive and shared by threads."""

from __future__ import annotations

import base64
import http.client
import re
import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from typing import TypeAlias
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from shardfeed_wire.errors import ShardError
from webdataset.remote import AbsentError, RemoteIdentity, TransientError, changed, public_url

__all__ = ["HttpRanges"]

_PROBE = 512
_PIECE = 256 << 10
_SOCKET_SECONDS = 20.0
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")
_NO_RANGES = (
    "this server gives no byte ranges, so the shard cannot be read at random: `shardfeed index --unpack DIR` copies it"
)

_Key: TypeAlias = "tuple[str, str, int]"


class HttpRanges:
    """Reads files of HTTP servers by range. Certificates are verified; the environment's proxies are used."""

    def __init__(self, connections: int) -> None:
        """Open nothing yet; up to ``connections`` idle ones are kept for each server."""
        self._connections = connections
        self._idle: dict[_Key, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        self._proxies = urllib.request.getproxies()
        self._context: ssl.SSLContext | None = None

    def identify(self, url: str, timeout: float, *, ranges: bool) -> RemoteIdentity:
        """Ask for the first bytes of a file, which shows whether ranges can be had; see ``Ranges``."""
        headers = {"Range": f"bytes=0-{_PROBE - 1}"} if ranges else {}
        with self._asked(url, headers, timeout) as response:
            if response.status == 416:
                raise ShardError("it is empty: 0 bytes are not a tar")
            if response.status == 200 and ranges:
                raise ShardError("it is empty: 0 bytes are not a tar" if response.length == 0 else _NO_RANGES)
            identity = _identity(response)
            if response.status == 206:
                _read_out(response)
            return identity

    def pieces(self, url: str, start: int, end: int, identity: RemoteIdentity, timeout: float) -> Iterator[bytes]:
        """Ask for a range of the file that ``identity`` is of; see ``Ranges``."""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        # A weak validator never matches here, and would make every read an error.
        if identity.etag and not identity.etag.startswith("W/"):
            headers["If-Match"] = identity.etag
        with self._asked(url, headers, timeout) as response:
            if response.status == 412:
                raise changed("the server has another version of it (HTTP status 412)")
            if response.status == 416:
                raise changed(f"it has no bytes {start} to {end} (HTTP status 416)")
            if how := identity.differs_from(_identity(response)):
                raise changed(how)
            if response.status != 206:
                raise ShardError(f"HTTP status {response.status} to a byte range: {_NO_RANGES}")
            sent = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if sent is None or sent[1] is None or int(sent[1]) != start or int(sent[2]) >= end:
                raise ShardError(f"asked for bytes {start} to {end}, and the server sent others: {sent and sent[0]}")
            with _mapped():
                # What came before a transfer breaks is kept only where it is taken as it comes.
                while data := response.read1(_PIECE):
                    yield data

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    @contextmanager
    def _asked(self, url: str, headers: dict[str, str], timeout: float) -> Iterator[http.client.HTTPResponse]:
        """Give the answer to a GET, redirections followed; errors that are no answer are raised."""
        for _ in range(_MOST_REDIRECTS + 1):
            with _mapped(), self._answered(urlsplit(url), headers, min(timeout, _SOCKET_SECONDS)) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    _raise_for(response)
                    yield response
                    return
                _read_out(response)
            url = urljoin(url, location)
            if urlsplit(url).scheme not in ("http", "https"):
                raise ShardError(f"the server redirects to {public_url(url)}, which is no HTTP URL")
        raise ShardError(f"the server redirects more than {_MOST_REDIRECTS} times; give the URL that it ends at")

    @contextmanager
    def _answered(
        self, place: SplitResult, headers: dict[str, str], timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        """Send one GET and give its answer; the connection is kept where that is read to its end."""
        key = (place.scheme, place.hostname or "", place.port or (443 if place.scheme == "https" else 80))
        proxy = self._proxy_for(place)
        connection = self._borrow(key, proxy, timeout)
        reusable = False
        try:
            with closing(_get(connection, _target(place, proxy), _headers(place, proxy) | headers)) as response:
                yield response
                read_out = response.isclosed() or response.length == 0
                reusable = read_out and connection.sock is not None
        finally:
            with self._lock:
                idle = self._idle.setdefault(key, [])
                if reusable and len(idle) < self._connections:
                    idle.append(connection)
                else:
                    connection.close()

    def _borrow(self, key: _Key, proxy: SplitResult | None, timeout: float) -> http.client.HTTPConnection:
        with self._lock:
            idle = self._idle.get(key)
            connection = idle.pop() if idle else None
        if connection is None:
            connection = self._make(key, proxy)
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection

    def _make(self, key: _Key, proxy: SplitResult | None) -> http.client.HTTPConnection:
        scheme, host, port = key
        at = (host, port) if proxy is None else (proxy.hostname or "", proxy.port or 80)
        if scheme != "https":
            return http.client.HTTPConnection(*at)
        if self._context is None:
            self._context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(*at, context=self._context)
        if proxy is not None:
            connection.set_tunnel(host, port, _authorization(proxy, "Proxy-Authorization"))
        return connection

    def _proxy_for(self, place: SplitResult) -> SplitResult | None:
        proxy = self._proxies.get(place.scheme)
        if proxy is None or urllib.request.proxy_bypass(place.hostname or ""):
            return None
        return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _get(connection: http.client.HTTPConnection, target: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    reused = connection.sock is not None
    try:
        connection.request("GET", target, headers=headers)
        return connection.getresponse()
    except (ConnectionError, http.client.BadStatusLine):
        # A server may close an idle connection at any moment; that says nothing about a new one.
        connection.close()
        if not reused:
            raise
    connection.request("GET", target, headers=headers)
    return connection.getresponse()


def _target(place: SplitResult, proxy: SplitResult | None) -> str:
    """Make what stands in the request's first line; a proxy for plain HTTP wants the whole URL."""
    target = (place.path or "/") + (f"?{place.query}" if place.query else "")
    if proxy is None or place.scheme == "https":
        return target
    return f"http://{place.netloc.rpartition('@')[2]}{target}"


def _headers(place: SplitResult, proxy: SplitResult | None) -> dict[str, str]:
    headers = {"Accept-Encoding": "identity", "User-Agent": "shardfeed", **_authorization(place, "Authorization")}
    if proxy is not None and place.scheme == "http":
        headers |= _authorization(proxy, "Proxy-Authorization")
    return headers


def _authorization(place: SplitResult, header: str) -> dict[str, str]:
    if place.username is None:
        return {}
    pair = f"{unquote(place.username)}:{unquote(place.password or '')}".encode()
    return {header: f"Basic {base64.b64encode(pair).decode()}"}


def _identity(response: http.client.HTTPResponse) -> RemoteIdentity:
    modified = 0
    try:
        if text := response.headers.get("Last-Modified"):
            modified = int(parsedate_to_datetime(text).timestamp()) * 10**9
    except ValueError:
        pass  # an identity without it
    if response.status == 206:
        sent = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if sent is None or sent[3] == "*":
            raise ShardError("the server does not say how large it is (Content-Range)")
        size = int(sent[3])
    elif response.length is not None:
        size = response.length
    else:
        raise ShardError("the server does not say how large it is (Content-Length)")
    return RemoteIdentity(size, response.headers.get("ETag", ""), modified)


def _raise_for(response: http.client.HTTPResponse) -> None:
    status = response.status
    if status in (200, 206, 412, 416):
        return
    text = f"HTTP status {status} {response.reason}"
    if status in _TRANSIENT:
        raise TransientError(text)
    if status in (401, 403):
        raise AbsentError(f"{text}: the server wants other credentials, or a signed URL is no longer valid")
    if status in (404, 410):
        raise AbsentError(text)
    raise ShardError(text)


def _read_out(response: http.client.HTTPResponse) -> None:
    """Read a short answer to its end, so that its connection can be used again."""
    response.read(_PIECE)


@contextmanager
def _mapped() -> Iterator[None]:
    """Map the network's errors."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise ShardError(f"its server's certificate is not trusted: {error.verify_message}") from error
    except socket.gaierror as error:
        if error.errno != socket.EAI_AGAIN:
            raise ShardError(f"its server's name cannot be resolved: {error.strerror}") from error
        raise TransientError(f"its server's name cannot be resolved: {error.strerror}") from error
    except TimeoutError as error:
        raise TransientError("the server was silent for too long") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f"the transfer broke: {str(error) or type(error).__name__}") from error
