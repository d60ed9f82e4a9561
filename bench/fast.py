"""What ``decode = "fast"`` gains, and how far its pixels are from those of the whole picture.

``python -m bench.fast`` prints the table of `docs/recipe.md`. Decoding and resizing alone, on one core.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from bench.data import CACHE
from shardfeed_server.resampling import resize
from tests.photographs import HEIGHT, WIDTH, Photographs
from webdataset.images import decode_image

ROUNDS = 7
__all__ = ["levels_apart"]

SIZES = ((WIDTH, HEIGHT, 66), (1000, 750, 33), (2000, 1500, 11))
TARGETS = (224, 128, 64)


def _pictures(width: int, height: int, count: int) -> list[bytes]:
    """Return photographs of a size, made larger where it is not theirs."""
    photographs = [each.jpeg for each in Photographs(CACHE / "photographs", count)[:count]]
    if (width, height) == (WIDTH, HEIGHT):
        return photographs
    return [_enlarged(jpeg, width, height) for jpeg in photographs]


def _enlarged(jpeg: bytes, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def _made(pictures: Sequence[bytes], target: int, *, fast: bool) -> tuple[list[np.ndarray], float]:
    least = (target, target) if fast else None
    began = time.perf_counter()
    made = [resize(decode_image(jpeg, "rgb8", least=least), target, target, "bilinear") for jpeg in pictures]
    return made, time.perf_counter() - began


def _apart(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Return by how many levels pictures differ: on average, in the worst one on average, and at most."""
    apart = [np.abs(one.astype(int) - other) for one, other in zip(some, others, strict=True)]
    means = [float(each.mean()) for each in apart]
    return statistics.fmean(means), max(means), max(int(each.max()) for each in apart)


def levels_apart(width: int, height: int, target: int) -> tuple[float, float, int]:
    """Return how far fast decoding is, for one row of the table."""
    pictures = _pictures(width, height, next(count for size, _, count in SIZES if size == width))
    return _apart(_made(pictures, target, fast=False)[0], _made(pictures, target, fast=True)[0])


def main() -> None:
    torch.set_num_threads(1)
    for width, height, count in SIZES:
        pictures = _pictures(width, height, count)
        for target in TARGETS:
            ratios = []
            for _ in range(ROUNDS):
                whole, slowly = _made(pictures, target, fast=False)
                quick, quickly = _made(pictures, target, fast=True)
                ratios.append(slowly / quickly)
            mean, worst, most = _apart(whole, quick)
            print(
                f"| {width} x {height} | {target} x {target} | {statistics.median(ratios):.2f} | "
                f"{mean:.1f} | {worst:.1f} | {most} |"
            )


if __name__ == "__main__":
    main()
