"""Real photographs, as many as asked for: crops of the pictures that scikit-image and scikit-learn ship.

Photograph number ``i`` is always the same picture; its class is the picture that it was cut from.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from PIL import Image

__all__ = ["HEIGHT", "PICTURES", "WIDTH", "Photograph", "Photographs", "write_shards"]

WIDTH, HEIGHT, QUALITY = 500, 375, 95

PICTURES = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "moon", "rocket", "china", "flower")
"""All of them lie in the packages; none is downloaded."""


class Photograph(NamedTuple):
    """A key, the bytes of a JPEG, of 500 x 375 pixels unless its sequence says otherwise, quality 95, and a class."""

    key: str
    jpeg: bytes
    label: int


class Photographs(Sequence[Photograph]):
    """A sequence of photographs, each made when it is first asked for, and kept as a file in ``folder``.

    Slices are lists: ``photographs[:200]``. Processes may share the folder: files appear whole.
    """

    def __init__(self, folder: Path, count: int, *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        self._folder = folder
        self._count = count
        self._size = size
        self._sources: dict[int, Image.Image] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Photograph: ...
    @overload
    def __getitem__(self, index: slice) -> list[Photograph]: ...
    def __getitem__(self, index: int | slice) -> Photograph | list[Photograph]:
        if isinstance(index, slice):
            return [self._photograph(i) for i in range(self._count)[index]]
        return self._photograph(range(self._count)[index])

    def _photograph(self, index: int) -> Photograph:
        path = self._folder / f"{index:06d}.jpg"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(self._make(index))
            part.replace(path)
        return Photograph(f"{index:06d}", path.read_bytes(), index % len(PICTURES))

    def _make(self, index: int) -> bytes:
        random = np.random.default_rng(index)
        source = self._source(index % len(PICTURES))
        # The largest box of the right proportions, times 0.5 to 1, anywhere.
        scale = random.uniform(0.5, 1.0) * min(source.width / self._size[0], source.height / self._size[1])
        width, height = scale * self._size[0], scale * self._size[1]
        left, top = random.uniform(0, source.width - width), random.uniform(0, source.height - height)
        crop = source.resize(self._size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        stream = io.BytesIO()
        crop.save(stream, "JPEG", quality=QUALITY)
        return stream.getvalue()

    def _source(self, label: int) -> Image.Image:
        if label not in self._sources:
            self._sources[label] = _shipped(PICTURES[label])
        return self._sources[label]


def _shipped(name: str) -> Image.Image:
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    import skimage.data

    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def write_shards(
    folder: Path, samples: Iterable[tuple[str, dict[str, bytes]]], count: int, name: str = "train"
) -> list[Path]:
    """Write samples (key, fields) into ``count`` shards of equal size, give or take one, with Python's tarfile."""
    listed = list(samples)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{name}-{number:06d}.tar"
        with tarfile.open(path, "w") as tar:
            for key, fields in listed[number * len(listed) // count : (number + 1) * len(listed) // count]:
                for field, data in fields.items():
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        paths.append(path)
    return paths
