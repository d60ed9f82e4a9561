"""Pictures with captions, laid out in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_grid"]

_GAP = 6
_CAPTION = 18
_FONT = 13
_SMALLEST, _LARGEST = 64, 512
_BACKGROUND, _INK, _BAD = (255, 255, 255), (20, 20, 20), (190, 0, 0)


def draw_grid(cells: Sequence[tuple[Image.Image | None, str]]) -> Image.Image:
    """Return one picture of all, about as many columns as rows, each with its caption under it.

    All pictures are scaled alike, so that one pixel of a small one is several whole ones here and no
    side is longer than 512; None is drawn as a crossed box. A caption too long for its picture is cut.
    """
    pictures = [picture for picture, _ in cells if picture is not None]
    width = max((picture.width for picture in pictures), default=_SMALLEST)
    height = max((picture.height for picture in pictures), default=_SMALLEST)
    scale = _scale(max(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    columns = math.ceil(math.sqrt(len(cells)))
    rows = math.ceil(len(cells) / columns)
    down, right = height + _CAPTION + _GAP, width + _GAP
    grid = Image.new("RGB", (columns * right + _GAP, rows * down + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(_FONT)
    for number, (picture, text) in enumerate(cells):
        left, top = _GAP + number % columns * right, _GAP + number // columns * down
        if picture is None:
            _cross(draw, left, top, width, height)
        else:
            grid.paste(_scaled(picture, scale), (left, top))
        draw.text((left, top + height + 1), _cut(text, font, width), fill=_BAD if picture is None else _INK, font=font)
    return grid


def _scale(side: int) -> float:
    if side > _LARGEST:
        return _LARGEST / side
    return math.ceil(_SMALLEST / side)


def _scaled(picture: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def _cross(draw: ImageDraw.ImageDraw, left: int, top: int, width: int, height: int) -> None:
    right, bottom = left + width - 1, top + height - 1
    draw.rectangle((left, top, right, bottom), outline=_BAD)
    draw.line((left, top, right, bottom), fill=_BAD)
    draw.line((left, bottom, right, top), fill=_BAD)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
