"""Small photographs: a server that need not resize them starts without torch, whose import takes 14 s in the guest."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from tests.photographs import Photograph
from tests.system.loaders import write_photographs

__all__ = ["write_small_photographs"]

SIZE = 64, 64


def write_small_photographs(folder: Path, photographs: Iterable[Photograph], count: int) -> list[Path]:
    """Write photographs of 64 x 64 pixels as jpg + cls into ``count`` shards."""
    return write_photographs(folder, (one._replace(jpeg=_small(one.jpeg)) for one in photographs), count)


def _small(jpeg: bytes) -> bytes:
    with Image.open(io.BytesIO(jpeg)) as picture:
        picture.draft("RGB", SIZE)  # decoded at an eighth already
        stream = io.BytesIO()
        picture.resize(SIZE).save(stream, "JPEG", quality=95)
    return stream.getvalue()
