"""What a preview makes of the columns that a trainer may get."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from shardfeed_cli.grid import draw_grid
from shardfeed_cli.pictures import caption, find_pictures, to_picture
from shardfeed_wire.errors import ConfigError

RAMP = torch.arange(12 * 10 * 3, dtype=torch.int64).reshape(12, 10, 3).remainder(256).to(torch.uint8)


def pixels(row: torch.Tensor) -> torch.Tensor:
    picture = to_picture(row)
    assert picture.mode == "RGB"
    return torch.from_numpy(np.array(picture))


@pytest.mark.parametrize(
    "row",
    [RAMP, RAMP.permute(2, 0, 1), RAMP.float() / 255, (RAMP.float() / 255).permute(2, 0, 1), RAMP.float()],
    ids=["uint8 HWC", "uint8 CHW", "0..1 HWC", "0..1 CHW", "0..255 HWC"],
)
def test_a_colour_picture_is_drawn_as_it_is_in_any_layout_and_dtype(row: torch.Tensor) -> None:
    assert torch.equal(pixels(row), RAMP)


@pytest.mark.parametrize("row", [RAMP[:, :, 0], RAMP[:, :, :1], RAMP[:, :, 0][None]], ids=["HW", "HW1", "1HW"])
def test_a_gray_picture_is_drawn_gray(row: torch.Tensor) -> None:
    assert torch.equal(pixels(row), RAMP[:, :, :1].expand(12, 10, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_normalised_picture_is_stretched_over_black_to_white(dtype: torch.dtype) -> None:
    row = torch.linspace(-2.0, 2.0, 12 * 10).reshape(12, 10).to(dtype)
    drawn = pixels(row)
    assert (int(drawn.min()), int(drawn.max())) == (0, 255)
    assert abs(int(drawn[6, 0, 0]) - 128) <= 2


def test_a_flag_is_black_or_white_and_a_flat_picture_no_error() -> None:
    assert pixels(torch.ones(9, 9, dtype=torch.bool)).unique().tolist() == [255]
    assert pixels(torch.full((9, 9), -1.0)).unique().tolist() == [0]
    assert pixels(torch.full((9, 9), float("nan"))).unique().tolist() == [0]


def test_the_first_column_that_looks_like_pictures_is_taken() -> None:
    columns = {"boxes": torch.zeros(2, 7, 4), "text": ["a", "b"], "label": torch.zeros(2), "image": RAMP[None]}
    assert find_pictures(columns) == "image"
    assert find_pictures({"ragged": [RAMP, RAMP[:5]]}) == "ragged"
    with pytest.raises(ConfigError, match="boxes, text, label"):
        find_pictures({name: columns[name] for name in ("boxes", "text", "label")})


def test_a_caption_says_numbers_text_and_json() -> None:
    columns = {
        "label": torch.tensor([3]),
        "text": ["a\ncat"],
        "facts": [{"size": 1}],
        "mask": torch.zeros(1, 9, 9),
        "raw": [b"bytes"],
        "share": torch.tensor([0.25]),
    }
    assert caption(columns, 0) == '3, a cat, {"size": 1}, 0.25'


def test_pictures_of_different_sizes_share_a_grid_and_a_bad_one_is_crossed_out() -> None:
    small, large = Image.new("RGB", (20, 30), (0, 0, 255)), Image.new("RGB", (40, 30), (0, 255, 0))
    grid = draw_grid([(small, "a"), (large, "a label much too long for its picture"), (None, "bad: key")])
    assert grid.size == (2 * (80 + 6) + 6, 2 * (60 + 18 + 6) + 6)
    assert grid.getpixel((6, 6)) == (0, 0, 255)
    assert grid.getpixel((6 + 39, 6)) == (0, 0, 255)
    assert grid.getpixel((6 + 40, 6)) == (255, 255, 255)
    assert grid.getpixel((6 + 86 + 79, 6 + 59)) == (0, 255, 0)
    assert grid.getpixel((6, 6 + 84))[0] > 128  # the cross is red
    assert grid.crop((6 + 86 + 80, 6 + 60, grid.width, 6 + 78)).getextrema() == ((255, 255),) * 3  # cut, not spilt


def test_large_pictures_are_scaled_down() -> None:
    assert draw_grid([(Image.new("RGB", (2048, 1024)), "a")]).size == (512 + 12, 256 + 18 + 12)
