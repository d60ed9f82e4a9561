"""The built-in transforms: against Pillow and torchvision, and against what a trainer must be able to rely on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import skimage.data
from PIL import Image as Pillow

from shardfeed_server.draws import Draws
from shardfeed_server.resampling import flip, resize
from shardfeed_server.transforms import CenterCrop, Flip, RandomResizedCrop, Resize, parse_transform
from shardfeed_wire.errors import ConfigError, SampleError

PICTURE = skimage.data.astronaut()[:375, :500].copy()
WAYS = {
    "bilinear": Pillow.Resampling.BILINEAR,
    "bicubic": Pillow.Resampling.BICUBIC,
    "nearest": Pillow.Resampling.NEAREST,
}


@pytest.mark.parametrize("size", [(224, 224), (100, 133), (500, 700), (375, 224), (1, 1)])
@pytest.mark.parametrize("way", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("channels", [0, 3, 4])
def test_resize_is_within_2_levels_of_pillow(size: tuple[int, int], way: str, channels: int) -> None:
    picture = PICTURE[:, :, 0] if channels == 0 else PICTURE
    if channels == 4:
        picture = np.concatenate([PICTURE, np.full_like(PICTURE[:, :, :1], 255)], axis=2)
    ours = resize(np.ascontiguousarray(picture), *size, way)  # type: ignore[arg-type]
    theirs = np.asarray(Pillow.fromarray(picture).resize(size[::-1], WAYS[way]))
    assert ours.shape == theirs.shape
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= (0 if way == "nearest" else 2)


@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
def test_resize_into_an_array_makes_the_same_pixels_there(way: str) -> None:
    rows = np.full((3, 224, 200, 3), 7, dtype=np.uint8)
    made = resize(PICTURE, 224, 200, way, rows[1])  # type: ignore[arg-type]
    assert np.shares_memory(made, rows)
    np.testing.assert_array_equal(rows[1], resize(PICTURE, 224, 200, way))  # type: ignore[arg-type]
    assert (rows[0] == 7).all()
    assert (rows[2] == 7).all()


def test_float_pictures_are_resized_like_uint8_ones() -> None:
    exact = resize(PICTURE.astype(np.float32) / 255, 100, 120, "bilinear")
    assert exact.dtype == np.float32
    assert np.abs(exact * 255 - resize(PICTURE, 100, 120, "bilinear")).max() <= 1


def test_a_picture_that_cannot_be_written_or_is_a_crop_is_resized_without_a_warning() -> None:
    frozen = PICTURE.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(resize(frozen, 50, 50, "bilinear"), resize(PICTURE, 50, 50, "bilinear"))
    crop = PICTURE[10:200, 20:300]
    np.testing.assert_array_equal(resize(crop, 50, 50, "bilinear"), resize(crop.copy(), 50, 50, "bilinear"))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(375, 500, (224, 298)), (500, 375, (298, 224)), (300, 300, (224, 224)), (33, 101, (224, 685))],
)
def test_resize_by_one_number_sets_the_shorter_side_as_torchvision_does(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    made = Resize(224)({"a": np.zeros((height, width, 3), np.uint8)}, {"a": "bilinear"}, Draws(0, 0, 0), {})
    assert made["a"].shape == (*expected, 3)


def test_a_strip_whose_proportions_would_fill_the_memory_is_a_bad_sample() -> None:
    strip = {"a": np.zeros((1, 20_000, 3), np.uint8)}
    with pytest.raises(SampleError, match="1 x 20000 would be resized to 224 x 4480000"):
        Resize(224)(strip, {"a": "bilinear"}, Draws(0, 0, 0), {})


def test_masks_keep_their_values() -> None:
    mask = np.zeros((375, 500), np.uint8)
    mask[100:200, 100:300] = 200
    made = Resize((100, 100))({"m": mask}, {"m": "nearest"}, Draws(0, 0, 0), {})["m"]
    assert set(np.unique(made)) == {0, 200}


@pytest.mark.parametrize(
    ("size", "wanted"), [((10, 12), (4, 6)), ((11, 12), (4, 5)), ((5, 20), (8, 8)), ((3, 3), (8, 6))]
)
def test_center_crop_cuts_and_pads_as_torchvision_does(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    picture = np.arange(1, size[0] * size[1] + 1, dtype=np.float32).reshape(size)
    ours = CenterCrop(wanted)({"a": picture}, {"a": "bilinear"}, Draws(0, 0, 0), {})["a"]
    np.testing.assert_array_equal(ours, _torchvision_center_crop(picture, wanted))


def _torchvision_center_crop(picture: np.ndarray, wanted: tuple[int, int]) -> np.ndarray:
    """torchvision.transforms.v2.functional.center_crop, without its import, which needs compiled operators."""
    height, width = picture.shape
    if wanted[1] > width or wanted[0] > height:
        left = (wanted[1] - width) // 2 if wanted[1] > width else 0
        top = (wanted[0] - height) // 2 if wanted[0] > height else 0
        right = (wanted[1] - width + 1) // 2 if wanted[1] > width else 0
        bottom = (wanted[0] - height + 1) // 2 if wanted[0] > height else 0
        picture = np.pad(picture, ((top, bottom), (left, right)))
        height, width = picture.shape
    top, left = round((height - wanted[0]) / 2.0), round((width - wanted[1]) / 2.0)
    return picture[top : top + wanted[0], left : left + wanted[1]]


def test_random_resized_crop_keeps_to_the_scales_and_ratios_of_torchvision() -> None:
    areas, ratios = [], []
    for number in range(500):
        top, left, height, width = RandomResizedCrop.choose(375, 500, Draws(0, 0, number))
        assert 0 <= top <= 375 - height
        assert 0 <= left <= 500 - width
        areas.append(height * width / (375 * 500))
        ratios.append(width / height)
    assert 0.075 <= min(areas) < 0.15
    assert 0.85 < max(areas) <= 1
    assert 0.74 <= min(ratios) < 0.8
    assert 1.25 < max(ratios) <= 1.345
    assert abs(np.mean(np.log(ratios))) < 0.03


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10)])
def test_random_resized_crop_of_a_strip_falls_back_to_its_middle(height: int, width: int) -> None:
    top, left, part_height, part_width = RandomResizedCrop.choose(height, width, Draws(0, 0, 5))
    assert math.isclose(part_width / part_height, 4 / 3 if width > height else 3 / 4, rel_tol=0.1)
    assert (top, left) == ((height - part_height) // 2, (width - part_width) // 2)


def test_what_is_drawn_depends_on_seed_epoch_and_sample_and_never_changes() -> None:
    # Part of the contract: other servers and later versions must draw the same.
    assert RandomResizedCrop.choose(375, 500, Draws(0, 0, 0)) == VECTOR
    chosen = {RandomResizedCrop.choose(375, 500, Draws(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(chosen) == 4


VECTOR = (0, 57, 372, 392)


def test_flip_happens_with_its_probability() -> None:
    picture = {"a": PICTURE[:4, :4].copy()}
    flipped = [Flip(0.3)(picture, {"a": "bilinear"}, Draws(0, 0, number), {}) for number in range(1000)]
    share = np.mean([(made["a"] != picture["a"]).any() for made in flipped])
    assert 0.25 < share < 0.35
    np.testing.assert_array_equal(flip(PICTURE), PICTURE[:, ::-1])


def test_a_joint_crop_cuts_the_same_part_of_picture_and_mask() -> None:
    rows = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 200, axis=1)
    images = {"image": np.repeat(rows[:, :, None], 3, axis=2), "mask": rows}
    made = RandomResizedCrop((50, 50))(images, {"image": "nearest", "mask": "nearest"}, Draws(0, 0, 3), {})
    np.testing.assert_array_equal(made["image"][:, :, 0], made["mask"])


@pytest.mark.parametrize("transform", [RandomResizedCrop((50, 50)), CenterCrop((50, 50))])
def test_a_joint_crop_of_different_sizes_names_fields_and_sizes(transform: RandomResizedCrop | CenterCrop) -> None:
    images = {"image": np.zeros((60, 70, 3), np.uint8), "mask": np.zeros((30, 35), np.uint8)}
    with pytest.raises(SampleError, match="image 60x70, mask 30x35") as caught:
        transform(images, {"image": "bilinear", "mask": "nearest"}, Draws(0, 0, 0), {})
    assert "resize=HEIGHTxWIDTH" in caught.value.reason


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("resize=224", Resize(224)),
        ("resize = 224x100", Resize((224, 100))),
        ("center_crop=7", CenterCrop((7, 7))),
        ("random_resized_crop=7x9", RandomResizedCrop((7, 9))),
        ("flip", Flip(0.5)),
        ("flip=0.3", Flip(0.3)),
    ],
)
def test_a_transform_is_read_from_text(text: str, same: object) -> None:
    assert parse_transform(text) == same
    assert parse_transform(str(same)) == same


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resise=224", "did you mean 'resize'"),
        ("rotate=3", "known are resize"),
        ("resize", "write resize=224 or resize=224x224"),
        ("resize=0", "1 to 65535"),
        ("resize=-5", "write resize=224"),
        ("resize=2x3x4", "write resize=224"),
        ("resize=²", "write resize=224"),
        ("center_crop=big", "write center_crop=224"),
        ("flip=2", "flip=0.5"),
        ("flip=", "flip=0.5"),
        ("flip=nan", "flip=0.5"),
    ],
)
def test_a_bad_transform_is_answered_with_the_nearest_name_or_an_example(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_transform(text)
    assert said in str(caught.value)
    assert repr(text) in str(caught.value)
