"""Shards pass both ways between this package and PyPI's webdataset: every file's bytes, and the pixels of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.interop.environments import run
from tests.interop.programs.as_json import told
from webdataset.samples import tariterator
from webdataset.writer import TarWriter

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

PROGRAMS = Path(__file__).parent / "programs"
RANDOM = np.random.default_rng(0)
IMAGES = {f"{number:04d}": RANDOM.integers(0, 256, (5 + number, 9, 3), dtype=np.uint8) for number in range(6)}


def as_peer_reads(peer: Path, shard: Path, spec: str) -> list[dict[str, Any]]:
    """Iterate a shard by PyPI's webdataset."""
    read: list[dict[str, Any]] = json.loads(run(peer, "-W", "ignore", PROGRAMS / "tar_read.py", shard, spec))
    return read


def as_we_read(shard: Path, decoder: Any) -> list[Any]:
    """Iterate a shard by ours."""
    with shard.open("rb") as stream:
        return [told(sample) for sample in tariterator(stream, decoder=decoder)]


def sample(number: int, key: str, image: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Make a sample with every kind of field that both sides decode, but for pictures."""
    return {
        "__key__": key,
        "cls": number,
        "txt": f"grün {number}",
        "json": {"n": [number, None, "ü"]},
        "mp": {"n": number},
        "npy": image.astype("f4"),
        "npz": {"a": image},
        "ten": [image.astype("i8"), np.zeros((0, 2), "f4")],
        "unknown": bytes([number]) * 700,
        "left.seg.id": number,
    }


def write(shard: Path, **more: Any) -> None:
    """Write a shard by ours, with names that need a pax header, too."""
    with TarWriter(shard) as writer:
        for number, (name, image) in enumerate(IMAGES.items()):
            long = "/" + "x" * 120 if number % 2 else ""
            key = f"ördner/{name}{long}/k"
            writer.write({**sample(number, key, image), "png": image, "left.seg.png": image[::-1].copy(), **more})


@pytest.mark.parametrize("name", ["ours.tar", "ours.tar.gz"])
def test_our_shards_hold_the_same_bytes_for_pypis_webdataset(peer: Path, tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    assert as_peer_reads(peer, tmp_path / name, "raw") == as_we_read(tmp_path / name, False)


@pytest.mark.parametrize("spec", ["rgb8", "l8", "rgb", "torchrgb8", "torchrgb"])
def test_our_shards_decode_equal_in_pypis_webdataset(peer: Path, tmp_path: Path, spec: str) -> None:
    write(tmp_path / "ours.tar")
    theirs, ours = as_peer_reads(peer, tmp_path / "ours.tar", spec), as_we_read(tmp_path / "ours.tar", spec)
    # Theirs keeps a message's arrays in a tuple or list of its own; JSON has one kind of list.
    assert theirs == json.loads(json.dumps(ours))
    pixels = told(next(iter(IMAGES.values())))
    assert spec != "rgb8" or theirs[0]["png"] == pixels


def test_shards_of_pypis_webdataset_come_out_as_they_were_written(peer: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", **IMAGES)
    run(peer, "-W", "ignore", PROGRAMS / "tar_write.py", tmp_path / "theirs.tar", tmp_path / "images.npz")
    with (tmp_path / "theirs.tar").open("rb") as stream:
        read = list(tariterator(stream, decoder="rgb8"))
    assert [one["__key__"] for one in read] == [f"folder/{name}" for name in IMAGES]
    for number, (one, image) in enumerate(zip(read, IMAGES.values(), strict=True)):
        np.testing.assert_array_equal(one["png"], image)
        np.testing.assert_array_equal(one["left.seg.png"], image[::-1])
        assert (one["cls"], one["txt"], one["json"], one["mp"]) == (
            number,
            f"grün {number}",
            {"n": [number, None]},
            {"n": number},
        )
        np.testing.assert_array_equal(one["npy"], image.astype("f4"))
        np.testing.assert_array_equal(one["npz"]["a"], image)
        assert [(array.dtype.str, array.shape) for array in one["ten"]] == [("<i8", image.shape), ("<f4", (0, 2))]
        np.testing.assert_array_equal(one["ten"][0], image)
        assert one["bytes"] == bytes([number]) * 700
    assert as_peer_reads(peer, tmp_path / "theirs.tar", "raw") == as_we_read(tmp_path / "theirs.tar", False)
