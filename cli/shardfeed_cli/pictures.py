"""From a batch's columns to pictures and captions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shardfeed_wire.errors import ConfigError

__all__ = ["caption", "find_pictures", "to_picture"]

_CHANNELS = (1, 3, 4)
_SMALLEST_GRAY = 8
"""A matrix with a smaller side, such as boxes of four corners, is no gray picture."""


def find_pictures(columns: Mapping[str, Any]) -> str:
    """Return the name of the first column whose rows look like pictures: (H, W), (H, W, C) or (C, H, W).

    Raises ConfigError, naming the columns, where there is none.
    """
    for name, column in columns.items():
        if len(column) and isinstance(column[0], torch.Tensor) and _is_picture(tuple(column[0].shape)):
            return name
    raise ConfigError(f"none of the columns {', '.join(columns)} holds pictures: of what they hold none can be drawn")


def to_picture(row: torch.Tensor) -> Image.Image:
    """Return one row as an RGB picture.

    uint8 is shown as it is. Floats in 0 .. 1 are shown as such, and those in 0 .. 255 too; others,
    normalised ones for example, and other integers are stretched from their least to their greatest value.
    """
    pixels = row.numpy() if row.dtype != torch.bfloat16 else row.float().numpy()
    if pixels.ndim == 3 and not _is_channels_last(pixels.shape):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    shown = _as_uint8(pixels[:, :, :3])  # without transparency
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3))))


def caption(columns: Mapping[str, Any], row: int) -> str:
    """Return what the columns say of one row that fits under a picture: numbers, text and JSON, with commas between."""
    return ", ".join(text for column in columns.values() if (text := _written(column[row])))


def _written(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        if value.ndim == 0:
            return f"{value.item():.4g}" if value.is_floating_point() else str(value.item())
        return ""
    if isinstance(value, bytes):
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split())


def _is_picture(shape: tuple[int, ...]) -> bool:
    if len(shape) == 2:
        return min(shape) >= _SMALLEST_GRAY
    return len(shape) == 3 and (shape[2] in _CHANNELS or shape[0] in _CHANNELS) and min(shape) > 0


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return shape[2] in _CHANNELS


def _as_uint8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels
    numbers = pixels.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if pixels.dtype == np.bool_ or (pixels.dtype.kind == "f" and least >= 0 and most <= 1):
        numbers = numbers * 255
    elif pixels.dtype.kind != "f" or least < 0 or most > 255:
        numbers = (numbers - least) * (255 / max(most - least, 1e-12))
    shown: NDArray[np.uint8] = np.nan_to_num(np.rint(numbers).clip(0, 255)).astype(np.uint8)
    return shown
