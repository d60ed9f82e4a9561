"""The data sets that all sides read: the number of a sample is its ``cls``, so that what came can be told."""

from __future__ import annotations

import fcntl
import io
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from tests.interop.environments import ROOT
from tests.photographs import Photographs, write_shards

__all__ = ["CACHE", "arrays", "blobs", "photographs", "texts"]

CACHE = ROOT / ".cache"
SHARDS = 8

_Samples = Iterable[tuple[str, dict[str, bytes]]]


def photographs(count: int) -> list[Path]:
    """Return shards of photographs, JPEG of 500 x 375 pixels, quality 95, as ``jpg`` and ``cls``."""

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        made = Photographs(CACHE / "photographs", count)
        for number in range(count):
            yield made[number].key, {"jpg": made[number].jpeg, "cls": _cls(number)}

    return _shards(f"photographs-{count}", samples)


def arrays(count: int) -> tuple[list[Path], Path]:
    """Return shards of uint8 arrays of 224 x 224 x 3, as ``npy`` and ``cls``; and one file of all of them."""
    file = CACHE / "bench-data" / f"arrays-{count}.npy"

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        random = np.random.default_rng(0)
        rows = np.lib.format.open_memmap(file, "w+", np.uint8, (count, 224, 224, 3))
        for number in range(count):
            rows[number] = random.integers(0, 256, rows.shape[1:], np.uint8)
            stream = io.BytesIO()
            np.save(stream, rows[number])
            yield f"{number:06d}", {"npy": stream.getvalue(), "cls": _cls(number)}

    return _shards(f"arrays-{count}", samples), file


def texts(count: int) -> list[Path]:
    """Return shards of texts of 100 bytes, as ``txt`` and ``cls``."""

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for number in range(count):
            yield f"{number:07d}", {"txt": f"sample {number} ".ljust(100, ".").encode(), "cls": _cls(number)}

    return _shards(f"texts-{count}", samples)


def blobs(count: int) -> list[Path]:
    """Return shards of 100,000 random bytes, as ``bin`` and ``cls``."""

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        random = np.random.default_rng(0)
        for number in range(count):
            yield f"{number:06d}", {"bin": random.bytes(100_000), "cls": _cls(number)}

    return _shards(f"blobs-{count}", samples)


def _cls(number: int) -> bytes:
    return b"%d" % number


def _shards(name: str, samples: Callable[[], _Samples]) -> list[Path]:
    """Return the shards of a data set, written when it is first asked for."""
    folder = CACHE / "bench-data" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            write_shards(part, samples(), SHARDS)
            part.rename(folder)
    return sorted(folder.glob("*.tar"))
