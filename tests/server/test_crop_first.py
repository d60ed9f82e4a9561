"""A random_resized_crop as first transform: made while decoding, and all the same as if it came afterwards."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image as Pillow

import webdataset.images
from shardfeed_server.config import FieldConfig, StreamConfig
from shardfeed_server.draws import Draws
from shardfeed_server.recipe import Recipe
from shardfeed_server.transforms import RandomResizedCrop, parse_transform
from shardfeed_wire.errors import SampleError
from tests.photographs import Photographs
from tests.requirements import require
from tests.server.streams import Asked, encoded, serve
from webdataset.images import decode_image, decodes_parts

TRANSFORMS = ("random_resized_crop=48x40", "flip", "random_resized_crop=32")
FIELDS = {"image": "jpg;png", "again": FieldConfig(ext="jpg;png", decode="l"), "mask": "mask.png", "cls": "cls"}


def written(jpeg: bytes, mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Pillow.open(io.BytesIO(jpeg)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def samples(photographs: Photographs) -> list[tuple[str, dict[str, bytes]]]:
    """Pictures of every kind, with masks; damaged ones; and one whose mask is of another size."""
    jpegs = [jpeg for _, jpeg, _ in photographs[:12]]
    pictures = [
        *jpegs,
        *(written(jpeg, "L") for jpeg in jpegs[:4]),
        *(written(jpeg, progressive=True) for jpeg in jpegs[:2]),
        written(jpegs[0], "CMYK"),
        jpegs[1][:-200],
        jpegs[2][:30_000] + b"\xff\x00" + jpegs[2][30_000:],
        jpegs[3][:20],
    ]
    mask = encoded(np.arange(375 * 500, dtype=np.uint32).reshape(375, 500).view(np.uint8)[:, ::4] // 9)
    made = [(f"s{number}", {"jpg": jpeg, "mask.png": mask, "cls": b"1"}) for number, jpeg in enumerate(pictures)]
    png = {"png": written(jpegs[4], kind="PNG"), "mask.png": mask, "cls": b"1"}
    return [
        *made,
        ("png", png),
        ("other", {"jpg": jpegs[5], "mask.png": encoded(np.zeros((375, 501), np.uint8)), "cls": b"2"}),
    ]


def asked(folder: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Asked:
    served = serve(folder, samples, fields=FIELDS, transforms=TRANSFORMS)
    return served.ask(range(len(samples)), seed=3, epoch=2, keys=True)


def test_a_stream_is_the_same_bytes_and_failures_with_jpegcrop_and_without(
    tmp_path: Path, samples: list[tuple[str, dict[str, bytes]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    require("jpegcrop", decodes_parts(), "shardfeed-jpegcrop is not installed: scripts/install says what it needs")
    parts = asked(tmp_path / "with", samples)
    monkeypatch.setattr(webdataset.images, "_import_jpegcrop", lambda: None)
    wholes = asked(tmp_path / "without", samples)
    assert parts.batch.columns == wholes.batch.columns
    assert parts.batch.failures == wholes.batch.failures
    assert [failure.key for failure in parts.batch.failures] == ["s19", "s21", "other"]
    for one, other in zip(parts.tensors[1:], wholes.tensors[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_stream_is_what_the_transforms_make_of_whole_pictures_with_the_same_draws(
    tmp_path: Path, samples: list[tuple[str, dict[str, bytes]]]
) -> None:
    answer = asked(tmp_path, samples)
    bad = {failure.row for failure in answer.batch.failures}
    ways: Mapping[str, Any] = {"image": "bilinear", "again": "bilinear", "mask": "nearest"}
    for row, (_, fields) in enumerate(samples):
        if row in bad:
            continue
        picture = fields.get("jpg") or fields["png"]
        images = {"image": decode_image(picture, "rgb8"), "again": decode_image(picture, "l")}
        images["mask"] = decode_image(fields["mask.png"], "rgb8")
        draws = Draws(3, 2, row)
        for transform in map(parse_transform, TRANSFORMS):
            images = transform(images, ways, draws, {})
        for name, image in images.items():
            np.testing.assert_array_equal(answer[name][row], image)


def test_pictures_of_different_sizes_are_bad_with_their_names_and_sizes(
    tmp_path: Path, samples: list[tuple[str, dict[str, bytes]]]
) -> None:
    (failure,) = asked(tmp_path, samples[-1:]).batch.failures
    assert "random_resized_crop=48x40 cuts the same part out of all image fields" in failure.reason
    assert "image 375x500, again 375x500, mask 375x501; put resize=HEIGHTxWIDTH before it" in failure.reason


def test_the_whole_is_not_decoded_where_jpegcrop_is_installed(
    photographs: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("jpegcrop", decodes_parts(), "shardfeed-jpegcrop is not installed: scripts/install says what it needs")
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    number = next(n for n in range(9) if is_small(Draws(0, 0, n)))
    for transforms in (("random_resized_crop=64",), ("random_resized_crop=64", "flip=1")):
        recipe = Recipe(StreamConfig(shards="x.tar", fields="jpg", transforms=transforms))
        (value,) = recipe.values({"__key__": "a", "jpg": photographs[0].jpeg}, Draws(0, 0, number), {})
        assert value.shape == (64, 64, 3)


def is_small(draws: Draws) -> bool:
    _, _, height, width = RandomResizedCrop.choose(375, 500, draws)
    return bool(height * width < 0.8 * 375 * 500)


def test_no_fact_and_so_no_fingerprint_tells_whether_jpegcrop_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = StreamConfig(shards="x.tar", fields="jpg", transforms=TRANSFORMS)
    here = Recipe(config)
    monkeypatch.setattr(webdataset.images, "_import_jpegcrop", lambda: None)
    assert Recipe(config).facts == here.facts
    assert here.facts["transforms"] == "random_resized_crop=48x40, flip=0.5, random_resized_crop=32x32"


def test_a_picture_above_max_pixels_is_bad_whatever_its_part(photographs: Photographs) -> None:
    config = StreamConfig(shards="x.tar", fields="jpg", transforms=TRANSFORMS, max_pixels=375 * 500 - 1)
    with pytest.raises(SampleError, match="above max_pixels"):
        Recipe(config).values({"__key__": "a", "jpg": photographs[0].jpeg}, Draws(0, 0, 0), {})
