"""The real things: nginx, and an S3 server (moto), twenty milliseconds away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import webdataset.remote
from shardfeed import RemoteDataset
from shardfeed_wire.errors import ShardError
from tests.debian import debian_program
from tests.photographs import Photographs
from tests.remote import far_proxy
from tests.requirements import require
from tests.system.loaders import Loader, wait_until, write_photographs
from webdataset.gopen import reader
from webdataset.indexing import index_shards
from webdataset.samples import read_sample
from webdataset.shards import ShardReader

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180), pytest.mark.xdist_group("peers")]

DELAY = 0.02
SAMPLES = 600


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


@contextlib.contextmanager
def running(*command: str, port: int, log: Path) -> Iterator[int]:
    """Run a server until the end of the block; give its port once it listens."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or listens(port), what=f"{command[0]} on its port")
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def far(port: int, delay: float = DELAY) -> Iterator[int]:
    """Give the port of a proxy that makes a server far away."""
    with subprocess.Popen(
        [sys.executable, far_proxy.__file__, str(port), str(delay)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def shards(photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("far"), photographs[:SAMPLES], count=6, name="train")


@pytest.fixture(scope="module")
def nginx(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Serve the shards, by the port; ``/busy/`` answers one request in two with 503."""
    program = debian_program("nginx", "nginx-light")
    require("peers", program, "nginx is not installed (Debian, Ubuntu: apt install nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (folder / "nginx.conf").write_text(f"""
        {"user root;" if os.geteuid() == 0 else ""}
        daemon off; worker_processes 2; pid {folder}/pid; error_log stderr;
        events {{ worker_connections 512; }}
        http {{
            access_log {folder}/access.log;
            client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
            uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            limit_req_zone $server_name zone=busy:1m rate=20r/s;
            limit_rate 0; sendfile on; tcp_nodelay on; keepalive_requests 100000;
            server {{
                listen 127.0.0.1:{port};
                root {shards[0].parent};
                location /busy/ {{ alias {shards[0].parent}/; limit_req zone=busy burst=2 nodelay; }}
                location /whole/ {{ alias {shards[0].parent}/; max_ranges 0; }}
            }}
        }}""")
    with running(str(program), "-c", str(folder / "nginx.conf"), "-p", str(folder), port=port, log=folder / "log"):
        yield port


@pytest.fixture(scope="module")
def s3(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Any]]:
    """Serve the shards from a bucket, by the server's port and obstore's store of the bucket."""
    pytest.importorskip("obstore", reason="[python] obstore is not installed: pip install 'shardfeed[objects]'")
    program = Path(sys.executable).with_name("moto_server")
    require("peers", program.exists(), "moto is not installed (pip install 'moto[server]')")
    import obstore
    from obstore.store import S3Store

    port = free_port()
    log = tmp_path_factory.mktemp("s3") / "log"
    with pytest.MonkeyPatch.context() as patch, running(str(program), "-p", str(port), port=port, log=log):
        patch.setenv("AWS_ACCESS_KEY_ID", "me")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
        patch.setenv("AWS_REGION", "us-east-1")
        make = urllib.request.Request(f"http://127.0.0.1:{port}/train", method="PUT")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(make, timeout=20).close()
        options: Any = {"endpoint": f"http://127.0.0.1:{port}", "client_options": {"allow_http": True}}
        store = S3Store("train", **options)
        for shard in shards:
            obstore.put(store, f"v1/{shard.name}", shard.read_bytes())
        yield port, store


@pytest.fixture(scope="module")
def expected(shards: list[Path]) -> tuple[str, float]:
    """What an epoch from files gives."""
    return epoch([str(shard) for shard in shards])


def epoch(shards: list[str], *options: str) -> tuple[str, float]:
    """Serve shards, run an epoch; give its digest and samples a second, and print these."""
    command = [*shards, "--fields", "jpg;png cls", "--resize", "64x64", "--bind", "tcp://127.0.0.1:0", *options]
    with Loader(command) as loader, RemoteDataset(loader.url, batch_size=32, seed=5) as dataset:
        began = time.monotonic()
        rows = sum(len(labels) for _, labels in dataset)
        rate = rows / (time.monotonic() - began)
        print(f"{shards[0]}: {rate:.0f} samples/s")
        assert rows == SAMPLES
        return dataset.digest, rate


# -------------------------------------------------------------------------------------------- nginx


def test_an_epoch_from_a_far_nginx_is_the_one_from_files(
    nginx: int, shards: list[Path], expected: tuple[str, float]
) -> None:
    with far(nginx) as port:
        digest, _ = epoch([f"http://127.0.0.1:{port}/{shard.name}" for shard in shards], "--block-bytes", "500000")
    local, _ = epoch([str(shard) for shard in shards], "--block-bytes", "500000")
    assert digest == local
    with far(nginx) as port:
        assert epoch([f"http://127.0.0.1:{port}/{shard.name}" for shard in shards])[0] == expected[0]


def test_a_busy_nginx_is_asked_again_until_it_answers(nginx: int, shards: list[Path]) -> None:
    urls = [f"http://127.0.0.1:{nginx}/busy/{shard.name}" for shard in shards]
    assert index_shards(urls).fingerprint == index_shards(shards).fingerprint


def test_an_nginx_without_ranges_is_named_with_the_way_out(nginx: int, shards: list[Path]) -> None:
    with pytest.raises(ShardError, match="`shardfeed index --unpack DIR`"):
        index_shards([f"http://127.0.0.1:{nginx}/whole/{shards[0].name}"])


def test_a_shard_that_nginx_has_another_version_of_is_refused(
    nginx: int, shards: list[Path], photographs: Photographs
) -> None:
    changing = shards[0].with_name("changing.tar")
    shutil.copy(shards[0], changing)
    manifest = index_shards([f"http://127.0.0.1:{nginx}/changing.tar"], block_bytes=500_000)
    with ShardReader(manifest) as afar:
        last = int(manifest.starts[-1]), int(manifest.lengths[-1])
        assert read_sample(afar.read(0, *last))["__key__"] == photographs[SAMPLES // 6 - 1].key
        os.utime(changing, (0, 0))
        assert afar.read(0, *last), "from the cache"
        with pytest.raises(ShardError, match=r"changing\.tar: it changed since it was opened.*412"):
            afar.read(0, 0, 512)
    changing.unlink()


# ----------------------------------------------------------------------------------------------- S3


def test_an_epoch_from_a_far_bucket_is_the_one_from_files(
    s3: tuple[int, Any], shards: list[Path], expected: tuple[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with far(s3[0]) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert epoch([f"s3://train/v1/{shard.name}" for shard in shards])[0] == expected[0]


def test_an_object_that_is_replaced_is_refused_and_streams_are_whole(
    s3: tuple[int, Any], shards: list[Path], monkeypatch: pytest.MonkeyPatch, obstore: None
) -> None:
    port, store = s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    data = shards[0].read_bytes()
    store.put("changing.tar", data)
    stream: Any = reader("s3://train/changing.tar")
    with stream:
        assert stream.read() == data
    manifest = index_shards(["s3://train/changing.tar"], block_bytes=500_000)
    assert manifest.fingerprint != ""
    with ShardReader(manifest) as afar:
        assert afar.read(0, 0, 512) == data[:512]
        store.put("changing.tar", data[:-512] + b"x" * 512)
        with pytest.raises(ShardError, match=r"s3://train/changing\.tar: it changed since it was opened"):
            afar.read(0, int(manifest.starts[-1]), int(manifest.lengths[-1]))


def test_a_missing_object_bucket_and_a_dead_server_are_named(
    s3: tuple[int, Any], monkeypatch: pytest.MonkeyPatch, obstore: None
) -> None:
    monkeypatch.setattr(webdataset.remote, "_FIRST_PAUSE", 0.001)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3[0]}")
    with pytest.raises(ShardError, match="no such object"):
        index_shards(["s3://train/none.tar"])
    with pytest.raises(ShardError, match="no such object"):
        reader("s3://nobucket/none.tar")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(ShardError, match=r"s3://train/v1/x\.tar: .*times in a row"):
        index_shards(["s3://train/v1/x.tar"])
