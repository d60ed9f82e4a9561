"""Pictures from bytes: JPEG by libjpeg-turbo directly, all others by Pillow, equal pixels by either."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from shardfeed_wire.errors import ConfigError, SampleError

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "IMAGESPECS",
    "MAX_PIXELS",
    "ImageSpec",
    "Part",
    "decode_image",
    "decodes_parts",
    "find_imagespec",
    "imagehandler",
]

MAX_PIXELS = 178_956_970
"""What is decoded unless told otherwise: as much as Pillow does by default."""


class ImageSpec(NamedTuple):
    """What a picture becomes: ``kind`` numpy, torch or pil; ``scaled``: float32 in 0..1; ``mode`` L, RGB or RGBA."""

    kind: str
    scaled: bool
    mode: str


IMAGESPECS = {
    "l8": ImageSpec("numpy", False, "L"),
    "rgb8": ImageSpec("numpy", False, "RGB"),
    "rgba8": ImageSpec("numpy", False, "RGBA"),
    "l": ImageSpec("numpy", True, "L"),
    "rgb": ImageSpec("numpy", True, "RGB"),
    "rgba": ImageSpec("numpy", True, "RGBA"),
    "torchl8": ImageSpec("torch", False, "L"),
    "torchrgb8": ImageSpec("torch", False, "RGB"),
    "torchrgba8": ImageSpec("torch", False, "RGBA"),
    "torchl": ImageSpec("torch", True, "L"),
    "torchrgb": ImageSpec("torch", True, "RGB"),
    "torch": ImageSpec("torch", True, "RGB"),
    "torchrgba": ImageSpec("torch", True, "RGBA"),
    "pill": ImageSpec("pil", False, "L"),
    "pil": ImageSpec("pil", False, "RGB"),
    "pilrgb": ImageSpec("pil", False, "RGB"),
    "pilrgba": ImageSpec("pil", False, "RGBA"),
}

# Pillow also opens formats that run other programs (EPS starts Ghostscript); training data is not trusted that far.
_FORMATS = ("JPEG", "PNG", "PPM", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "MPO", "AVIF")
_JPEG_START = b"\xff\xd8\xff"

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

Part: TypeAlias = tuple[int, int, int, int]
"""Top, left, height and width of a part of a picture; it lies inside."""

_WORTH_A_PART = 0.9
"""A part of more of the picture than this takes as long as the whole: `python -m bench.parts`."""


def decode_image(
    data: bytes | memoryview,
    imagespec: str,
    *,
    max_pixels: int = MAX_PIXELS,
    least: tuple[int, int] | None = None,
    part: Callable[[int, int], Part] | None = None,
) -> Any:
    """Decode a picture as ``imagespec`` says.

    :param data: a file's bytes: JPEG, PNG, PBM, PGM, PPM, WebP, BMP, GIF, TIFF, JPEG 2000 or AVIF.
    :param imagespec: one of ``IMAGESPECS``.
    :param max_pixels: width times height that is still decoded; looked at before decoding.
    :param least: a height and width: a JPEG may then come out at a half, a quarter or an eighth of its size, where
        that is no smaller. It is made from fewer coefficients, which is faster and not what resizing it would give.
        Without simplejpeg, and for an imagespec of Pillow or with alpha, it comes out whole.
    :param part: what is wanted of a picture of a height and width, which it is called with, again where one decoder
        gives up and another takes over. The result is that part of what whole decoding, without ``least``, gives, and
        damage elsewhere in the picture is an error as ever. Of most JPEGs only the part is made, see `decodes_parts`.
    :returns: numpy (H, W) for gray and (H, W, C) else, uint8, or float32 in 0..1; torch (1, H, W)
        or (C, H, W) of the same; or a ``PIL.Image.Image``. Arrays are writable and contiguous.
    :raises SampleError: it cannot be decoded, or has more pixels than allowed; a ValueError too.
    :raises ConfigError: the imagespec is unknown, or Pillow, or torch for its specs, is not installed.
    """
    spec = find_imagespec(imagespec)
    pixels: Pixels | None = None
    if data[:3] == _JPEG_START and spec.mode != "RGBA" and spec.kind != "pil":
        pixels = _decode_jpeg(data, spec.mode, max_pixels, least, part)
    if pixels is None:
        image = _decode_with_pillow(data, spec.mode, max_pixels)
        if part is not None:
            top, left, height, width = part(image.height, image.width)
            image = image.crop((left, top, left + width, top + height))
        if spec.kind == "pil":
            return image
        pixels = np.array(image)
    result = pixels.astype(np.float32) / np.float32(255) if spec.scaled else pixels
    return _as_tensor(result) if spec.kind == "torch" else result


def imagehandler(data: bytes | memoryview, imagespec: str) -> Any:
    """Decode image data using the given ``imagespec``, as ``decode_image`` does with its default ``max_pixels``.

    The ``imagespec`` says what a picture of H x W pixels becomes:

    - ``l8``: numpy uint8 (H, W); ``l``: float32 (H, W)
    - ``rgb8``: numpy uint8 (H, W, 3); ``rgb``: float32 (H, W, 3)
    - ``rgba8``: numpy uint8 (H, W, 4); ``rgba``: float32 (H, W, 4)
    - ``torchl8``: torch uint8 (1, H, W); ``torchl``: float32 (1, H, W)
    - ``torchrgb8``: torch uint8 (3, H, W); ``torchrgb`` and ``torch``: float32 (3, H, W)
    - ``torchrgba8``: torch uint8 (4, H, W); ``torchrgba``: float32 (4, H, W)
    - ``pill``: a ``PIL.Image.Image`` of mode L; ``pil`` and ``pilrgb``: RGB; ``pilrgba``: RGBA

    float32 values lie in 0..1.

    :param data: a file's bytes, in any of the formats of ``decode_image``.
    :param imagespec: one of the above, in any case.
    :raises SampleError: the picture does not decode, or has too many pixels; a ValueError too.
    :raises ConfigError: the imagespec is unknown, or Pillow, or torch for its specs, is not installed.
    """
    return decode_image(data, imagespec)


def find_imagespec(imagespec: str) -> ImageSpec:
    """Look up an imagespec by name, in any case.

    :raises ConfigError: there is none; the message lists them.
    """
    spec = IMAGESPECS.get(imagespec.lower())
    if spec is None:
        raise ConfigError(f"unknown image specification {imagespec!r}: use one of {', '.join(IMAGESPECS)}")
    return spec


def decodes_parts() -> bool:
    """Say whether a part of a JPEG is made without the rest: that takes simplejpeg, and our shardfeed-jpegcrop."""
    return _import_simplejpeg() is not None and _import_jpegcrop() is not None


def _decode_jpeg(
    data: bytes | memoryview,
    mode: str,
    max_pixels: int,
    least: tuple[int, int] | None,
    choose: Callable[[int, int], Part] | None,
) -> Pixels | None:
    """Decode a JPEG, or a part, to (H, W) or (H, W, 3); or return None where Pillow is to have the last word."""
    simplejpeg = _import_simplejpeg()
    if simplejpeg is None:
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    _check_pixels(width, height, max_pixels)
    gray = colorspace.lower() == "gray"
    # Pillow has its own ways with CMYK; and a colour picture is made gray from RGB, not from its luma.
    if not gray and colorspace.lower() not in ("rgb", "ycbcr"):
        return None
    colours = "GRAY" if gray and mode == "L" else "RGB"
    # Asked here with jpegcrop and without, so that both choose alike even where Pillow then finds another size.
    part = None if choose is None else choose(height, width)
    try:
        if part is None:
            # Not by fifths or sevenths of eight, which libjpeg-turbo has no fast code for: they take longer than the
            # whole.
            smaller = {} if least is None else {"min_height": least[0], "min_width": least[1], "min_factor": 2}
            pixels: Pixels = simplejpeg.decode_jpeg(data, colours, **smaller)
        else:
            pixels = _decode_part(data, colours, (height, width), part)
    except ValueError:
        return None
    if mode == "RGB":
        return pixels
    return pixels[:, :, 0] if gray else np.array(_import_pillow().fromarray(pixels).convert("L"))


def _decode_part(data: bytes | memoryview, colours: str, size: tuple[int, int], part: Part) -> Pixels:
    """Return a part of a JPEG of a height and width. Raises ValueError for a damaged one."""
    top, left, height, width = part
    jpegcrop = _import_jpegcrop()
    if jpegcrop is not None and height * width <= _WORTH_A_PART * size[0] * size[1]:
        pixels: Pixels = np.empty((height, width, 1 if colours == "GRAY" else 3), np.uint8)
        try:
            jpegcrop.decode_part(data, pixels, top, left)
        except ValueError:
            pass  # Damaged, or of a kind that it leaves to us: what whole decoding says counts.
        else:
            return pixels
    whole = _import_simplejpeg().decode_jpeg(data, colours)
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


def _decode_with_pillow(data: bytes | memoryview, mode: str, max_pixels: int) -> Image.Image:
    pillow = _import_pillow()
    try:
        with pillow.open(io.BytesIO(data), formats=_known_formats()) as image:
            _check_pixels(image.width, image.height, max_pixels)
            converted: Image.Image = image.convert(mode)
            return converted
    except SampleError:
        raise
    # Pillow's readers raise whatever they stumble over: OSError, SyntaxError, struct.error, IndexError, ...
    except Exception as error:
        reason = f"a picture of {len(data)} bytes does not decode: {_without_object(error)}"
        raise SampleError(reason, reason=reason) from error


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        reason = f"a picture of {width} x {height} = {width * height} pixels is above max_pixels = {max_pixels}"
        raise SampleError(reason, reason=reason)


def _without_object(error: Exception) -> str:
    """Pillow's message names the buffer by its address, which helps nobody and differs every time."""
    name = type(error).__name__
    return "not a picture of a known format" if name == "UnidentifiedImageError" else f"{name}: {error}"


def _as_tensor(array: np.ndarray[Any, np.dtype[Any]]) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ConfigError("torch image specifications need PyTorch: install torch, or decode to numpy") from error
    return torch.from_numpy(np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)))


@functools.cache
def _import_simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        # Only slower without it.
        return None
    return simplejpeg


@functools.cache
def _import_jpegcrop() -> Any:
    try:
        import shardfeed_jpegcrop
    except ImportError:  # not installed, or its libjpeg-turbo is not
        return None
    return shardfeed_jpegcrop


@functools.cache
def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("decoding pictures needs Pillow: install shardfeed[server]") from error
    return Image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    pillow = _import_pillow()
    pillow.init()
    return tuple(name for name in _FORMATS if name in pillow.OPEN)
