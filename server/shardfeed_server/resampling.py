"""Pictures in other sizes: arrays of shape (height, width) or (height, width, channels), uint8 or float32.

torch is imported where it is used: a stream that needs none of this starts without it, see `StreamConfig.needs_torch`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shardfeed_server.config import Interpolation
from shardfeed_wire.errors import SampleError
from webdataset.images import MAX_PIXELS

if TYPE_CHECKING:
    import torch

__all__ = ["Image", "crop", "flip", "resize"]

Image: TypeAlias = NDArray[Any]


def resize(image: Image, height: int, width: int, interpolation: Interpolation, into: Image | None = None) -> Image:
    """Return the picture at ``height`` x ``width``, or itself where it has that size.

    Bilinear and bicubic are antialiased, within 2 levels of Pillow's for uint8; nearest takes the
    pixel whose centre is nearest, as Pillow and torch's ``nearest-exact`` do. Where ``into`` is
    given, contiguous, and of the result's shape and dtype, the result may be written there.
    Raises SampleError for a result so large that it can only be a mistake, as a strip's can be.
    """
    if image.shape[:2] == (height, width):
        return image
    if height * width > MAX_PIXELS:
        size = f"{image.shape[0]} x {image.shape[1]}"
        reason = f"a picture of {size} would be resized to {height} x {width}, above {MAX_PIXELS} pixels"
        raise SampleError(reason, reason=reason)
    if interpolation == "nearest":
        return image[_nearest(image.shape[0], height)[:, None], _nearest(image.shape[1], width)]
    source = _channels_first(image)
    if into is not None and into.shape == (height, width, *image.shape[2:]) and into.dtype == image.dtype:
        _writing()[interpolation](source, (height, width), False, None, None, out=_channels_first(into))
        return into
    from torch.nn import functional

    resized = functional.interpolate(source, size=(height, width), mode=interpolation, antialias=True)
    array: Image = resized[0].permute(1, 2, 0).numpy()
    return array if image.ndim == 3 else array[:, :, 0]


@functools.cache
def _writing() -> dict[str, Any]:
    """What functional.interpolate calls, and which it offers no `out` of; writing into the answer saves a copy."""
    import torch

    return {"bilinear": torch._C._nn._upsample_bilinear2d_aa, "bicubic": torch._C._nn._upsample_bicubic2d_aa}


def crop(image: Image, top: int, left: int, height: int, width: int) -> Image:
    """Return a part of the picture, a view; where the part reaches outside, zeros."""
    below, right = max(0, top + height - image.shape[0]), max(0, left + width - image.shape[1])
    if top < 0 or left < 0 or below or right:
        around = ((max(0, -top), below), (max(0, -left), right), (0, 0))
        image = np.pad(image, around[: image.ndim])
        top, left = max(0, top), max(0, left)
    return image[top : top + height, left : left + width]


def flip(image: Image) -> Image:
    """Return the picture with left and right exchanged."""
    # Torch, for numpy's copy of a reversed axis takes 13 times as long.
    return _tensor(image).flip(1).numpy()


def _nearest(size: int, wanted: int) -> NDArray[np.int64]:
    """Return which of ``size`` pixels each of ``wanted`` pixels is: where its centre falls, in exact integers."""
    return (2 * np.arange(wanted, dtype=np.int64) + 1) * size // (2 * wanted)


def _channels_first(image: Image) -> torch.Tensor:
    """View a picture as (1, C, H, W) over channels-last memory, which torch's native uint8 kernel is written for."""
    tensor = _tensor(image)
    # In this order: with the new dimension last, its stride would hide from torch that this is channels-last.
    return tensor[None].permute(0, 3, 1, 2) if image.ndim == 3 else tensor[None, None]


def _tensor(image: Image) -> torch.Tensor:
    """View an array as a tensor; a crop or a read-only array is copied, which torch or its kernels would ask for."""
    import torch

    if not image.flags.c_contiguous or not image.flags.writeable:
        image = image.copy()
    return torch.from_numpy(image)
