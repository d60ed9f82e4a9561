"""An HTTP server of files that gives ranges, fails as it is told to, and notes what it was asked."""

from __future__ import annotations

import http.server
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RangeServer", "served"]


@dataclass
class RangeServer:
    """What the server is to do, by path; tests change it while it runs."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    etags: bool = True
    honours_if_match: bool = True
    ranges: bool = True
    delay: float = 0.0
    dribble: float = 0.0  # seconds after each 4 KiB of a large transfer
    statuses: list[int] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)  # bytes after which a transfer is cut, of the next large ones
    redirect_to: str = ""
    password: str = ""  # as the Authorization header has it
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    connections: int = 0
    sent: int = 0
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def etag(self, data: bytes) -> str:
        return f'"{hash(data) & 0xFFFFFFFF:08x}"'


@contextmanager
def served(**told: Any) -> Iterator[RangeServer]:
    """Run a server until the end of the block; all it does is in what this gives."""
    state = RangeServer(**told)
    sockets: list[socket.socket] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            sockets.append(self.connection)
            state.connections += 1

        def do_GET(self) -> None:
            with state.lock:
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
            try:
                time.sleep(state.delay)
                self._answer()
            finally:
                with state.lock:
                    state.at_once -= 1

        def _answer(self) -> None:
            place = self.path if "://" not in self.path else "/" + self.path.split("/", 3)[3]
            path = place.partition("?")[0]
            asked = self.headers.get("Range")
            state.asked.append((place, asked))
            if state.redirect_to and not place.startswith("/moved"):
                self._short(302, Location=state.redirect_to + place)
                return
            path = path.removeprefix("/moved")
            data = state.files.get(path)
            if state.password and self.headers.get("Authorization") != state.password:
                self._short(401)
            elif state.statuses and (status := state.statuses.pop(0)):
                self._short(status)
            elif data is None:
                self._short(404)
            elif state.honours_if_match and self.headers.get("If-Match") not in (None, state.etag(data)):
                self._short(412)
            else:
                self._send(data, asked if state.ranges else None)

        def _send(self, data: bytes, asked: str | None) -> None:
            start, end = 0, len(data)
            if asked and data:
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
                assert found, asked
                start, end = int(found[1]), min(int(found[2]) + 1, len(data))
            self.send_response(206 if asked and data else 200)
            if asked and data:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            if state.etags:
                self.send_header("ETag", state.etag(data))
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            body = data[start:end]
            if len(body) > 512 and state.breaks:
                body = body[: state.breaks.pop(0)]
                self.close_connection = True
            piece = 4096 if state.dribble and len(body) > 512 else max(1, len(body))
            for at in range(0, len(body), piece):
                self.wfile.write(body[at : at + piece])
                time.sleep(state.dribble)
            state.sent += len(body)

        def _short(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        server.handle_error = lambda request, address: None  # type: ignore[assignment]  # a client may leave
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
            for each in sockets:  # those that a client keeps alive
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
