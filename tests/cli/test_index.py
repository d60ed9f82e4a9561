"""`shardfeed index`: a manifest, or every bad shard by its name; and shards unpacked first."""

from __future__ import annotations

import bz2
import gzip
import http.server
import lzma
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.cli.command import run
from tests.photographs import write_shards
from webdataset.manifest import Manifest


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    """Four good shards of five samples each."""
    samples = [(f"{number:04d}", {"txt": b"text", "cls": b"%d" % number}) for number in range(20)]
    return write_shards(tmp_path / "in", samples, 4)


@pytest.fixture
def spoilt(tars: list[Path]) -> list[Path]:
    """The same, all but the first spoilt, each in a way of its own; and one that is missing."""
    tars[1].write_bytes(tars[1].read_bytes()[:1000])
    packed = tars[2].with_suffix(".tar.gz")
    packed.write_bytes(gzip.compress(tars[2].read_bytes()))
    tars[3].write_bytes(b"")
    return [tars[0], tars[1], packed, tars[3], tars[3].with_name("gone.tar")]


def test_braces_expand_and_the_manifest_counts_every_sample(tars: list[Path], tmp_path: Path) -> None:
    done = run("index", tmp_path / "in/train-{000000..000003}.tar", "-o", tmp_path / "train.manifest")
    assert done.returncode == 0, done.stderr
    assert "20 samples in 4 shards" in done.stdout
    manifest = Manifest.load(tmp_path / "train.manifest")
    assert (manifest.samples, manifest.names) == (20, tuple(path.name for path in tars))
    assert manifest.fingerprint in done.stdout


def test_every_bad_shard_is_named_at_once_and_nothing_is_written(spoilt: list[Path], tmp_path: Path) -> None:
    done = run("index", *spoilt, "-o", tmp_path / "train.manifest")
    assert done.returncode == 1
    assert all(path.name in done.stderr for path in spoilt[1:])
    assert "index --unpack DIR" in done.stderr
    assert not (tmp_path / "train.manifest").exists()


def test_bad_shards_that_are_excluded_are_named_and_left_out(spoilt: list[Path], tmp_path: Path) -> None:
    done = run("index", *spoilt, "-o", tmp_path / "train.manifest", "--exclude-bad")
    assert done.returncode == 0, done.stderr
    assert all(path.name in done.stderr for path in spoilt[1:])
    manifest = Manifest.load(tmp_path / "train.manifest")
    assert manifest.names == (spoilt[0].name,)
    assert len(manifest.excluded) == 4


def test_an_output_that_is_something_else_is_refused_and_stays_as_it_is(tars: list[Path], tmp_path: Path) -> None:
    before = tars[0].read_bytes()
    done = run("index", "-o", *tars)  # the shell makes this of `-o *.tar`
    assert done.returncode == 1
    assert f"-o {tars[0]} exists and is no manifest" in done.stderr
    assert tars[0].read_bytes() == before
    done = run("index", *tars, "-o", tmp_path)
    assert f"-o {tmp_path} is a folder; name a file" in done.stderr
    for _ in range(2):  # the second takes the first one's place
        assert run("index", *tars, "-o", tmp_path / "train.manifest").returncode == 0


def test_an_output_without_a_folder_is_refused_before_the_shards_are_read(tmp_path: Path) -> None:
    done = run("index", tmp_path / "gone.tar", "-o", tmp_path / "none/train.manifest")
    assert done.returncode == 1
    assert "there is no folder" in done.stderr


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """A server of the files in ``in`` that knows no ranges."""
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "in")
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_compressed_piped_and_remote_shards_are_unpacked_and_indexed(
    tars: list[Path], tmp_path: Path, website: str
) -> None:
    contents = [path.read_bytes() for path in tars]
    shards = [
        tars[0].with_suffix(".tar.gz"),
        tars[1].with_suffix(".tar.bz2"),
        tars[2].with_suffix(".txz"),
    ]
    for shard, compress, content in zip(shards, (gzip.compress, bz2.compress, lzma.compress), contents, strict=False):
        shard.write_bytes(compress(content))
    pipe = f"pipe:gzip -c {tars[3]}"
    url = f"{website}/{tars[3].name}"
    out = tmp_path / "out"
    done = run("index", *shards, "-o", tmp_path / "local.manifest", "--unpack", out)
    assert done.returncode == 0, done.stderr
    assert [(out / path.name).read_bytes() for path in tars[:3]] == contents[:3]
    for number, shard in enumerate((pipe, url)):
        done = run("index", shard, "-o", tmp_path / "one.manifest", "--unpack", out / str(number))
        assert done.returncode == 0, done.stderr
        (unpacked,) = (out / str(number)).iterdir()
        assert unpacked.read_bytes() == contents[3]
    assert Manifest.load(tmp_path / "local.manifest").samples == 15


def test_shards_that_cannot_be_unpacked_are_all_named(tars: list[Path], tmp_path: Path, website: str) -> None:
    broken = tars[0].with_suffix(".tar.gz")
    broken.write_bytes(gzip.compress(tars[0].read_bytes())[:-20])
    bad = [broken, tmp_path / "gone.tar", f"{website}/gone.tar", "pipe:exit 3", "s3://bucket/a.tar"]
    done = run("index", *bad, tars[1], "-o", tmp_path / "m", "--unpack", tmp_path / "out")
    assert done.returncode == 1
    assert "5 of 6 shards cannot be unpacked" in done.stderr
    assert all(str(shard) in done.stderr for shard in bad)
    assert not list((tmp_path / "out").rglob("*.tar.gz"))


def test_two_shards_that_would_unpack_to_one_file_are_refused(tars: list[Path], tmp_path: Path) -> None:
    packed = tars[0].with_suffix(".tar.gz")
    packed.write_bytes(gzip.compress(tars[0].read_bytes()))
    done = run("index", tars[0], packed, "-o", tmp_path / "m", "--unpack", tmp_path / "out")
    assert done.returncode == 1
    assert str(packed) in done.stderr
    assert str(tars[0]) in done.stderr
