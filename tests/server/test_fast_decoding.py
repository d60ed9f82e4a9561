"""``decode = "fast"``: only where it is asked for by name, and as far from whole decoding as the page says."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.fast import levels_apart
from shardfeed_server.config import FieldConfig, StreamConfig
from shardfeed_server.draws import Draws
from shardfeed_server.recipe import Recipe
from shardfeed_wire.errors import ConfigError
from tests.photographs import Photographs
from webdataset.images import decode_image

PAGE = Path(__file__).parents[2] / "docs/recipe.md"
ROW = re.compile(r"\| (\d+) x (\d+) \| (\d+) x \d+ \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \| (\d+) \|")


def recipe(decode: str = "fast", *transforms: str, fields: Any = "jpg") -> Recipe:
    return Recipe(StreamConfig(shards="x.tar", fields=fields, decode=decode, transforms=transforms))


def made(recipe: Recipe, **files: bytes) -> list[Any]:
    return recipe.values({"__key__": "a", **files}, Draws(0, 0, 0), {})


@pytest.fixture(scope="module")
def jpeg(photographs: Photographs) -> bytes:
    return photographs[0].jpeg  # 500 x 375


@pytest.mark.parametrize("row", [found.groups() for found in ROW.finditer(PAGE.read_text())], ids=" ".join)
def test_the_page_bounds_how_far_its_pixels_are_from_those_of_the_whole(row: tuple[str, ...]) -> None:
    width, height, target = map(int, row[:3])
    mean, worst, most = levels_apart(width, height, target)
    assert mean <= float(row[3]) + 0.05
    assert worst <= float(row[4]) + 0.05
    assert most <= int(row[5])


def test_the_page_has_rows_to_hold() -> None:
    assert len(ROW.findall(PAGE.read_text())) >= 9


@pytest.mark.parametrize(
    ("least", "size"),
    [
        ((188, 250), (188, 250)),
        ((188, 251), (375, 500)),
        ((60, 60), (94, 125)),
        ((1, 1), (47, 63)),
        ((999, 9), (375, 500)),
    ],
)
def test_a_jpeg_is_halved_while_it_is_no_smaller_than_needed(
    jpeg: bytes, least: tuple[int, int], size: tuple[int, int]
) -> None:
    assert decode_image(jpeg, "rgb8", least=least).shape == (*size, 3)
    assert decode_image(jpeg, "l8", least=least).shape == size


def test_fast_gives_the_size_asked_for_and_other_pixels_under_another_fingerprint(jpeg: bytes) -> None:
    fast, whole = recipe("fast", "resize=64x64"), recipe("rgb8", "resize=64x64")
    (quickly,), (slowly,) = made(fast, jpg=jpeg), made(whole, jpg=jpeg)
    assert quickly.shape == slowly.shape == (64, 64, 3)
    assert (quickly != slowly).any()
    assert fast.fingerprint != whole.fingerprint
    assert "fast" in fast.facts["field jpg"]


def test_what_needs_more_than_half_of_it_is_decoded_whole(jpeg: bytes) -> None:
    for size in ("resize=224x224", "resize=224"):
        (quickly,), (slowly,) = made(recipe("fast", size), jpg=jpeg), made(recipe("rgb8", size), jpg=jpeg)
        np.testing.assert_array_equal(quickly, slowly)


def test_masks_and_other_formats_are_decoded_whole(jpeg: bytes) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(file, "PNG")
    fields = {"image": "png", "mask": FieldConfig(ext="jpg")}
    fast, whole = (recipe(decode, "resize=64x64", fields=fields) for decode in ("fast", "rgb8"))
    for one, other in zip(*(made(each, png=file.getvalue(), jpg=jpeg) for each in (fast, whole)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("transforms", [(), ("random_resized_crop=64",), ("flip", "resize=64")])
def test_fast_without_a_resize_in_front_says_what_to_write(transforms: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"field 'jpg'.*must be a resize.*Write for example resize=256"):
        recipe("fast", *transforms)
