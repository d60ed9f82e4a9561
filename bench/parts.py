"""What decoding only the part of a ``random_resized_crop`` gains over decoding whole pictures.

``python -m bench.parts`` prints the table of `docs/recipe.md`. Decoding, cutting and resizing alone, on one core, both
ways in turn, picture by picture, over the same crops, whose pixels are compared; it needs `jpegcrop`.
"""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

import webdataset.images
from bench.data import CACHE
from shardfeed_server.config import StreamConfig
from shardfeed_server.draws import Draws
from shardfeed_server.recipe import Recipe
from tests.photographs import Photographs
from webdataset.images import decodes_parts

ROUNDS = 9
COUNT = 132


def _written(jpeg: bytes, mode: str = "RGB", scale: int = 1, **options: Any) -> bytes:
    picture = Image.open(io.BytesIO(jpeg)).convert(mode)
    if scale > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, **options)
    return file.getvalue()


KINDS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "500 x 375": (1, lambda jpeg: jpeg),
    "500 x 375, chroma whole": (1, lambda jpeg: _written(jpeg, subsampling=0)),
    "500 x 375, gray": (1, lambda jpeg: _written(jpeg, "L")),
    "500 x 375, progressive": (2, lambda jpeg: _written(jpeg, progressive=True)),
    "2000 x 1500": (12, lambda jpeg: _written(jpeg, scale=4)),
}
"""How the photographs of the tests are written anew, and of how many of them one is taken."""


def _timed(recipe: Recipe, jpeg: bytes, number: int) -> tuple[Any, float]:
    began = time.thread_time()
    made = recipe.values({"jpg": jpeg}, Draws(0, 0, number), {})[0]
    return made, time.thread_time() - began


def _gain(jpegs: Sequence[bytes]) -> float:
    """Return how many times longer whole decoding takes: of each picture, the quickest of all rounds."""
    recipe = Recipe(StreamConfig(shards="x.tar", fields="jpg", transforms=("random_resized_crop=224",)))
    installed = webdataset.images._import_jpegcrop
    slow, quick = [math.inf] * len(jpegs), [math.inf] * len(jpegs)
    for _ in range(ROUNDS):
        for number, jpeg in enumerate(jpegs):
            part, quickly = _timed(recipe, jpeg, number)
            webdataset.images._import_jpegcrop = lambda: None
            whole, slowly = _timed(recipe, jpeg, number)
            webdataset.images._import_jpegcrop = installed
            assert np.array_equal(part, whole)
            slow[number], quick[number] = min(slow[number], slowly), min(quick[number], quickly)
    return sum(slow) / sum(quick)


def main() -> None:
    if not decodes_parts():
        sys.exit(
            "bench.parts compares with and without shardfeed-jpegcrop, which is not installed: pip install ./jpegcrop"
        )
    torch.set_num_threads(1)
    photographs = Photographs(CACHE / "photographs", COUNT)
    for name, (step, write) in KINDS.items():
        print(f"| {name} | {_gain([write(each.jpeg) for each in photographs[::step]]):.2f} |", flush=True)


if __name__ == "__main__":
    main()
