"""What users get wrong, and what they are told."""

from __future__ import annotations

import gzip
import io
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq
from PIL import Image

from shardfeed import (
    ConnectError,
    DataMismatchError,
    RecipeMismatchError,
    RefusedError,
    RemoteDataset,
    SampleError,
    ShapeError,
    ShardfeedError,
    UnknownStreamError,
    VersionMismatchError,
)
from shardfeed_wire.messages import Welcome, pack
from tests.photographs import Photographs, write_shards
from tests.system.loaders import Loader, write_photographs

OPTIONS = ("--workers", "1")

pytestmark = pytest.mark.xdist_group("bad-input")  # the servers of good and of bad samples are for all


@pytest.fixture(scope="module")
def shards(thumbnails: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("bad"), thumbnails[:64], count=2)


@pytest.fixture(scope="module")
def server(shards: list[Path]) -> Iterator[Loader]:
    with Loader.of(shards, *OPTIONS) as server:
        yield server


def refused_start(*arguments: object) -> str:
    loader = Loader(list(map(str, arguments)), wait=False)
    with loader:
        assert loader.wait() == 1, loader.output
    return loader.output


def test_every_bad_shard_is_named_in_one_message_and_the_server_does_not_start(
    shards: list[Path], tmp_path: Path
) -> None:
    good = shards[0].read_bytes()
    (tmp_path / "good.tar").write_bytes(good)
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "truncated.tar").write_bytes(good[: len(good) // 2 + 100])
    (tmp_path / "text.tar").write_bytes(b"no tar at all\n" * 100)
    (tmp_path / "packed.tar").write_bytes(gzip.compress(good))
    names = ["good", "empty", "truncated", "text", "packed", "missing"]
    printed = refused_start(*(tmp_path / f"{name}.tar" for name in names), "--fields", "jpg cls")
    for name in ("empty", "truncated", "text", "packed", "missing"):
        assert f"{name}.tar" in printed
    assert "shardfeed index --unpack" in printed
    assert "Traceback" not in printed


def test_what_a_transform_says_of_a_file_that_is_not_utf_8_ends_no_worker(shards: list[Path], tmp_path: Path) -> None:
    (tmp_path / "saying.py").write_text("def f(sample):\n    raise ValueError('no map gr\\udcfcn.json')\n")
    said = refused_start(
        *shards, "--fields", "cls", "--code-dir", tmp_path, "--transform", "saying:f", "--bind", "tcp://127.0.0.1:0"
    )
    assert "the transform saying:f raised ValueError: no map gr?n.json" in said
    assert "Traceback" not in said


def test_a_bad_shard_can_be_left_out_for_good(shards: list[Path], tmp_path: Path) -> None:
    for shard in shards:
        shutil.copy(shard, tmp_path)
    (tmp_path / "zz.tar").write_bytes(b"")
    given = [*sorted(tmp_path.glob("train-*.tar")), tmp_path / "zz.tar"]
    with Loader.of(given, *OPTIONS, "--exclude-bad") as server, RemoteDataset(server.url, batch_size=64) as dataset:
        assert sum(len(labels) for _, labels in dataset) == 64


def test_shards_of_equal_names_in_several_folders_are_told_apart(thumbnails: Photographs, tmp_path: Path) -> None:
    one = write_photographs(tmp_path / "a", thumbnails[:8], count=1)
    two = write_photographs(tmp_path / "b", thumbnails[:8], count=1)
    with Loader.of([*one, *two], *OPTIONS) as server:
        with RemoteDataset(server.url, batch_size=4, info=True) as dataset:
            rows = [pair for *_, info in dataset for pair in zip(info.shards, info.keys, strict=True)]
        names = {"a/train-000000.tar", "b/train-000000.tar"}
        assert {shard for shard, _ in rows} == names
        assert len(set(rows)) == 16


def jpeg(size: tuple[int, int] = (40, 30)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


KINDS = {"b-nolabel": "cls", "c-broken": "jpg", "d-large": "max_pixels", "e-twice": "twice"}
"""The bad samples by their keys, and what is said of each."""


def bad_samples(folder: Path) -> None:
    """bad.tar: four good samples, and one each of ``KINDS``. KEY.tar: a good sample and that one."""
    members: list[tuple[str, bytes]] = []
    for key in ("a0", "a1", "a2", "a3"):
        members += [(f"{key}.jpg", jpeg()), (f"{key}.cls", b"1")]
    members += [("b-nolabel.jpg", jpeg())]
    members += [("c-broken.jpg", jpeg()[:200]), ("c-broken.cls", b"1")]
    members += [("d-large.jpg", jpeg((400, 300))), ("d-large.cls", b"1")]
    members += [("e-twice.jpg", jpeg()), ("e-twice.jpg", jpeg()), ("e-twice.cls", b"1")]
    for shard, keys in {"bad": ("a", *KINDS), **{key: ("a0", key) for key in KINDS}}.items():
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for name, data in members:
                if name.startswith(keys):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def bad_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    """A server of the shards of `bad_samples`, each a stream."""
    folder = tmp_path_factory.mktemp("bad-samples")
    bad_samples(folder)
    config = folder / "shardfeed.toml"
    recipe = 'fields = "jpg cls"\nmax_pixels = 20000\ntransforms = ["resize=8x8"]\n'
    streams = [f'[streams.{shard}]\nshards = "{shard}.tar"\n{recipe}' for shard in ("bad", *KINDS)]
    config.write_text('bind = ["tcp://127.0.0.1:0"]\nworkers = 1\n' + "".join(streams))
    with Loader(["--config", config]) as server:
        yield server


def test_bad_samples_are_raised_with_their_names_or_masked_and_counted(bad_server: Loader) -> None:
    url, stream = bad_server.url, "bad"
    with RemoteDataset(url, stream=stream, batch_size=8, shuffle=False, on_error="mask", info=True) as dataset:
        ((images, labels, info),) = list(dataset)
        assert info.valid.tolist() == [True] * 4 + [False] * 4
        assert bool((images[4:] == images[0]).all())
        assert labels.tolist() == [1] * 8
        assert dataset.stats.masked == 4
        assert dataset.stats.samples == 4
        command = [sys.executable, "-m", "shardfeed", "digest", url, "--stream", stream]
        command += ["--no-shuffle", "--on-error", "mask"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50).stdout
        assert printed.strip() == dataset.digest
    with RemoteDataset(url, stream=stream, batch_size=3, shuffle=False) as dataset:
        batches = iter(dataset)
        next(batches)
        with pytest.raises(SampleError, match=r"'b-nolabel' of shard 'bad.tar'.*cls.*on_error='mask'") as caught:
            next(batches)
        assert (caught.value.key, caught.value.field) == ("b-nolabel", "cls")
    with (
        RemoteDataset(url, stream=stream, batch_size=1, shuffle=False, on_error="mask") as dataset,
        pytest.raises(SampleError, match="every sample of the batch is bad"),
    ):
        list(dataset)


@pytest.mark.parametrize(("key", "words"), KINDS.items())
def test_each_kind_of_bad_sample_says_what_is_wrong(bad_server: Loader, key: str, words: str) -> None:
    with (
        RemoteDataset(bad_server.url, stream=key, batch_size=2, shuffle=False) as dataset,
        pytest.raises(SampleError, match=words) as caught,
    ):
        next(iter(dataset))
    assert (caught.value.key, caught.value.shard) == (key, f"{key}.tar")


@pytest.fixture
def odd_sizes(tmp_path: Path) -> list[Path]:
    samples = [(f"s{n}", {"jpg": jpeg((40 + 8 * (n % 2), 30)), "cls": b"1"}) for n in range(32)]
    return write_shards(tmp_path, samples, count=1, name="odd")


def test_pictures_of_different_sizes_within_an_answer_are_an_error_that_names_two(odd_sizes: list[Path]) -> None:
    with (
        Loader.of(odd_sizes, "--workers", "1") as server,
        RemoteDataset(server.url, batch_size=8, shuffle=False) as dataset,
        pytest.raises(ShapeError, match=r"(?s)s0.*s1.*resize.*ragged"),
    ):
        next(iter(dataset))


def test_pictures_of_different_sizes_between_two_servers_answers_are_an_error_that_names_two(tmp_path: Path) -> None:
    samples = [(f"s{n:02d}", {"jpg": jpeg((40, 30) if n < 32 else (48, 30)), "cls": b"1"}) for n in range(64)]
    shards = write_shards(tmp_path, samples, count=2, name="odd")
    with Loader.of(shards, *OPTIONS, wait=False) as one, Loader.of(shards, *OPTIONS, wait=False) as two:
        one.wait_ready()
        two.wait_ready()
        with (
            RemoteDataset([one.url, two.url], batch_size=64, shuffle=False) as dataset,
            pytest.raises(ShapeError, match=r"(?s)s\d\d.*s\d\d.*resize.*ragged"),
        ):
            next(iter(dataset))


# ------------------------------------------------------------------------------------ who answers


def first_batch(url: str, **options: object) -> None:
    with RemoteDataset(url, batch_size=4, connect_timeout=2.0, **options) as dataset:
        next(iter(dataset))


def raised_within(seconds: float, call: Callable[[], None]) -> ShardfeedError:
    began = time.monotonic()
    with pytest.raises(ShardfeedError) as caught:
        call()
    assert time.monotonic() - began < seconds
    return caught.value


def test_nobody_listening_is_an_error_within_connect_timeout_that_names_the_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error = raised_within(4.0, lambda: first_batch(f"tcp://127.0.0.1:{port}"))
    assert isinstance(error, ConnectError)
    assert f"tcp://127.0.0.1:{port}: nobody listens there" in str(error)
    assert "connect_timeout=2 s" in str(error)


def test_a_web_server_is_told_from_a_loader() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            error = raised_within(4.0, lambda: first_batch(f"tcp://127.0.0.1:{listener.getsockname()[1]}"))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert "does not speak ZeroMQ" in str(error) or "not a shardfeed server" in str(error)


def zeromq_server(
    answer: Callable[[list[bytes]], list[bytes] | None], call: Callable[[str], ShardfeedError]
) -> ShardfeedError:
    """Run ``call`` against a ROUTER that answers messages as told."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                if router.poll(50):
                    peer, *chunks = router.recv_multipart()
                    reply = answer(chunks)
                    if reply is not None:
                        router.send_multipart([peer, *reply])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            return call(f"tcp://127.0.0.1:{port}")
        finally:
            stop.set()
            thread.join()


def test_a_zeromq_peer_that_is_no_loader_is_named() -> None:
    error = zeromq_server(lambda _: [b"hello"], lambda url: raised_within(4.0, lambda: first_batch(url)))
    assert isinstance(error, RefusedError)
    assert "not a shardfeed server" in str(error)


def test_a_zeromq_peer_that_says_nothing_is_named() -> None:
    error = zeromq_server(lambda _: None, lambda url: raised_within(4.0, lambda: first_batch(url)))
    assert isinstance(error, ConnectError)
    assert "tcp://127.0.0.1:" in str(error)


def test_a_server_of_another_protocol_version_is_refused_with_both_named() -> None:
    welcome = Welcome(version=9, server="s", nonce="n", workers=1, streams=(), software="shardfeed 9.0")
    frames = [bytes(chunk) for chunk in pack(welcome)]
    error = zeromq_server(lambda _: frames, lambda url: raised_within(4.0, lambda: first_batch(url)))
    assert isinstance(error, VersionMismatchError)
    assert "version 9" in str(error)
    assert "version 1" in str(error)


def test_an_unknown_stream_is_refused_with_those_there_are(server: Loader) -> None:
    error = raised_within(4.0, lambda: first_batch(server.url, stream="val"))
    assert isinstance(error, UnknownStreamError)
    assert "'val'" in str(error)
    assert "default" in str(error)


def test_servers_of_different_data_are_refused_together(
    server: Loader, thumbnails: Photographs, tmp_path: Path
) -> None:
    shards = write_photographs(tmp_path, thumbnails[:40], count=2)
    with Loader.of(shards, *OPTIONS) as other:
        error = raised_within(6.0, lambda: first_batch([server.url, other.url]))
    assert isinstance(error, DataMismatchError)
    assert "64 samples" in str(error)
    assert "40 samples" in str(error)


def test_servers_of_different_recipes_are_refused_together_with_what_differs(shards: list[Path]) -> None:
    both = [Loader.of(shards, "--resize", size, *OPTIONS, wait=False) for size in ("32x32", "48x48")]
    with both[0] as one, both[1] as other:
        one.wait_ready()
        other.wait_ready()
        error = raised_within(6.0, lambda: first_batch([one.url, other.url]))
    assert isinstance(error, RecipeMismatchError)
    assert "resize=48x48" in str(error)
    assert "resize=32x32" in str(error)
