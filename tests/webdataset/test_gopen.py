"""Shards open by URL, resume where a transfer broke, and never end early in silence."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import webdataset.httpstream
from shardfeed_wire.errors import ConfigError, ShardError
from webdataset.gopen import make_opener, reader, schemes

DATA = os.urandom(300_000)


def read(url: str) -> bytes:
    """Open, read and close."""
    stream: Any = reader(url)
    with stream:
        data: bytes = stream.read(1 << 30)
        return data


def test_files_open_by_path_and_by_file_url(tmp_path: Path) -> None:
    path = tmp_path / "a shard.tar"
    path.write_bytes(DATA)
    assert read(str(path)) == read(f"file:{path}") == read(path.as_uri()) == DATA


def test_a_missing_file_and_an_unknown_scheme_are_named() -> None:
    with pytest.raises(ShardError, match="shard /no/such: cannot open it: No such file") as caught:
        reader("/no/such")
    assert caught.value.shard == "/no/such"
    with pytest.raises(ConfigError, match=r"shard ftp://x: unknown scheme 'ftp'.*http"):
        reader("ftp://x")


def test_schemes_can_be_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    monkeypatch.setitem(schemes, "mine", lambda url: (tmp_path / url.removeprefix("mine:")).open("rb"))
    assert read("mine:x") == DATA


def test_object_stores_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"pip install 'shardfeed\[objects\]'"):
        reader("s3://bucket/x.tar")


def test_the_standard_input_is_read_and_stays_open() -> None:
    program = (
        "from webdataset.gopen import reader\nwith reader('-') as s: assert s.read() == b'abc'\nimport os; os.fstat(0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], input=b"abc", check=True, env=environment)


# --------------------------------------------------------------------------------------- commands


def test_a_commands_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    assert read(f"pipe:cat {tmp_path}/x") == DATA


@pytest.mark.parametrize(
    ("command", "said"), [("printf abc; exit 3", "exit status 3"), ("printf abc; kill -9 $$", "signal SIGKILL")]
)
def test_a_command_that_fails_raises_after_its_output(command: str, said: str) -> None:
    with pytest.raises(ShardError, match=said):
        read(f"pipe:{command}")


def test_a_command_that_is_not_read_to_the_end_is_stopped() -> None:
    stream: Any = reader("pipe:sleep 100; sleep 100")
    begin = time.monotonic()
    stream.close()
    assert time.monotonic() - begin < 5
    stream = reader("pipe:yes | cat")
    assert stream.read(4) == b"y\ny\n"
    stream.close()


def test_an_opener_is_a_function_or_a_command_with_the_url_quoted(tmp_path: Path) -> None:
    (tmp_path / "a b.tar").write_bytes(DATA)
    stream: Any = make_opener("cat {url}")(str(tmp_path / "a b.tar"))
    with stream:
        assert stream.read() == DATA
    assert make_opener(reader) is reader
    with pytest.raises(ConfigError, match=r"no \{url\}"):
        make_opener("cat x")


# ------------------------------------------------------------------------------------------- HTTP


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA as the class attributes say."""

    protocol_version = "HTTP/1.1"
    breaks: ClassVar[list[int]] = []
    statuses: ClassVar[list[int]] = []
    ranges: ClassVar[bool] = True
    sends_length: ClassVar[bool] = True
    etag: ClassVar[str] = '"1"'
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        """Answer, perhaps with an error, perhaps broken off."""
        asked = self.headers.get("Range")
        self.asked.append(asked)
        if self.statuses:
            self.send_response(self.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        body = DATA[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("ETag", self.etag)
        if self.sends_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        kept = body[: self.breaks.pop(0)] if self.breaks else body
        if self.sends_length:
            self.wfile.write(kept)
        else:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(kept), kept) if kept else b"")
            if kept == body:
                self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Handler]]]:
    """Run an HTTP server; its handler's attributes are the test's own."""
    monkeypatch.setattr(webdataset.httpstream, "_FIRST_PAUSE", 0.001)
    own = type("Own", (Handler,), {"asked": [], "breaks": [], "statuses": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), own) as listening:
        listening.daemon_threads = False
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/x.tar", own
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("sends_length", [True, False])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_goes_on_where_it_broke(
    server: tuple[str, type[Handler]], sends_length: bool, ranges: bool
) -> None:
    url, handler = server
    handler.breaks, handler.ranges, handler.sends_length = [100_000, 50_000, 200_000], ranges, sends_length
    assert read(url) == DATA
    assert handler.asked[:2] == [None, "bytes=100000-"]


def test_a_busy_server_is_asked_again(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.statuses = [503, 429, 500]
    assert read(url) == DATA


def test_a_missing_file_raises_at_once_with_its_status(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.statuses = [404]
    with pytest.raises(ShardError, match=r"shard http://.*/x\.tar: HTTP status 404"):
        reader(url)
    assert len(handler.asked) == 1


def test_what_is_secret_in_a_url_is_not_in_its_errors(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.statuses = [404]
    with pytest.raises(ShardError, match=r"/x\.tar: HTTP status 404") as caught:
        reader(f"{url}?signature=secret")
    assert "secret" not in str(caught.value)


def test_a_server_that_keeps_breaking_raises(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.breaks = [1000] + [0] * 100
    with pytest.raises(ShardError, match="the transfer broke 6 times at byte 1000"):
        read(url)


def test_a_server_that_stays_busy_raises_with_its_status(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.statuses = [503] * 100
    with pytest.raises(ShardError, match="HTTP Error 503"):
        reader(url)


def test_a_file_that_changes_between_two_parts_raises(server: tuple[str, type[Handler]]) -> None:
    url, handler = server
    handler.breaks = [300_000 - 1]
    stream: Any = reader(url)
    with stream:
        stream.read(10)
        handler.etag = '"2"'
        with pytest.raises(ShardError, match="changed while it was read"):
            stream.read(1 << 30)


def test_nobody_listening_raises(server: tuple[str, type[Handler]]) -> None:
    with pytest.raises(ShardError, match="refused"):
        reader("http://127.0.0.1:1/x.tar")
