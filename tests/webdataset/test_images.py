"""Pictures: the seventeen specifications, equal pixels by either decoder, and bad pictures refused before they cost."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

import webdataset.images
from shardfeed_wire.errors import ConfigError, SampleError
from webdataset.decode import default_handlers
from webdataset.images import IMAGESPECS, decode_image, imagehandler


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Make a picture with smooth parts, edges and noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 128, (height, width))
    planes = [127 + 127 * np.sin(x / 7 + y / 11), 255 * ((x // 9 + y // 5) % 2), noise + 60, 255 - y % 256]
    return Image.fromarray(np.stack(planes, axis=-1).clip(0, 255).astype("u1"), "RGBA").convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Write a picture as a file's bytes."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


RGBA = picture(13, 17, "RGBA")


@pytest.mark.parametrize("spec", IMAGESPECS)
def test_each_specification_gives_the_documented_kind_shape_and_range(spec: str) -> None:
    mode = "L" if spec.removesuffix("8").endswith("l") and spec != "pil" else "RGBA" if "rgba" in spec else "RGB"
    expected = np.array(RGBA.convert(mode))
    result = decode_image(encoded(RGBA), spec)
    if spec.startswith("pil"):
        assert isinstance(result, Image.Image)
        assert result.mode == mode
        np.testing.assert_array_equal(np.array(result), expected)
        return
    if spec.startswith("torch"):
        assert isinstance(result, torch.Tensor)
        assert result.shape == ({"L": 1, "RGB": 3, "RGBA": 4}[mode], 13, 17)
        assert result.is_contiguous()
        result = result.numpy().transpose(1, 2, 0)
        result = result[:, :, 0] if mode == "L" else result
    assert result.shape == expected.shape
    assert result.flags.writeable
    if spec.endswith("8"):
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, expected)
    else:
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected.astype("f4") / np.float32(255))


def test_there_are_seventeen_specifications_with_a_table_of_handlers_each() -> None:
    assert len(IMAGESPECS) == 17
    assert list(default_handlers) == list(IMAGESPECS)
    for spec in IMAGESPECS:
        for extension in ["png", "jpg", "jpeg", "img", "image", "pbm", "pgm", "ppm"]:
            assert type(default_handlers[spec][extension](encoded(RGBA))) is type(decode_image(encoded(RGBA), spec))


def same_as_pillow(data: bytes) -> bool:
    """Compare our pixels with Pillow's, in colour and in gray."""
    image = Image.open(io.BytesIO(data))
    return all(
        np.array_equal(decode_image(data, spec), np.array(image.convert(mode)))
        for spec, mode in (("rgb8", "RGB"), ("l8", "L"))
    )


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (101, 203)])
def test_jpegs_have_the_pixels_that_pillow_gives(size: tuple[int, int]) -> None:
    pixels = np.array(picture(*size))
    for quality in (10, 90):
        for subsampling in ("444", "422", "420", "440", "411"):
            assert same_as_pillow(simplejpeg.encode_jpeg(pixels, quality, colorsubsampling=subsampling))
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            options = {"subsampling": subsampling, "progressive": True, "quality": quality}
            assert same_as_pillow(encoded(picture(*size), "JPEG", **options))


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCbCr"])
def test_jpegs_of_other_colours_have_the_pixels_that_pillow_gives(mode: str) -> None:
    data = encoded(picture(50, 61, "RGB").convert(mode), "JPEG")
    for spec, target in (("rgb8", "RGB"), ("l8", "L"), ("rgba8", "RGBA")):
        np.testing.assert_array_equal(decode_image(data, spec), np.array(Image.open(io.BytesIO(data)).convert(target)))


def test_plain_jpegs_do_not_pass_through_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset.images, "_decode_with_pillow", None)
    assert decode_image(encoded(picture(5, 6), "JPEG"), "rgb8").shape == (5, 6, 3)
    assert decode_image(encoded(picture(5, 6, "L"), "JPEG"), "l8").shape == (5, 6)


def test_without_simplejpeg_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(50, 61), "JPEG")
    expected = decode_image(data, "rgb8")
    monkeypatch.setattr(webdataset.images, "_import_simplejpeg", lambda: None)
    np.testing.assert_array_equal(decode_image(data, "rgb8"), expected)


@pytest.mark.parametrize("file_format", ["PNG", "PPM", "WEBP", "BMP", "GIF", "TIFF"])
def test_files_are_known_by_their_content_whatever_their_extension(file_format: str) -> None:
    data = encoded(picture(9, 9), file_format)
    np.testing.assert_array_equal(decode_image(data, "rgb8"), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def huge_png() -> bytes:
    """Write the header of a PNG of 40,000 x 40,000 pixels, and nothing of them."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, data)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_picture_above_max_pixels_is_refused_by_its_header(file_format: str) -> None:
    data = encoded(picture(20, 30), file_format)
    assert decode_image(data, "rgb8", max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(SampleError, match=r"30 x 20 = 600 pixels is above max_pixels = 599"):
        decode_image(data, "rgb8", max_pixels=599)


def test_a_header_that_claims_gigapixels_is_refused_by_default() -> None:
    with pytest.raises(SampleError):
        decode_image(huge_png(), "rgb8")


@pytest.mark.parametrize("cut", [0, 1, 3, 20, 200, -100])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_picture_cut_off_or_empty_is_a_sample_error_and_a_value_error(cut: int, file_format: str) -> None:
    data = encoded(picture(30, 40), file_format)[:cut]
    with pytest.raises(SampleError, match=f"a picture of {len(data)} bytes does not decode") as caught:
        decode_image(data, "rgb8")
    assert isinstance(caught.value, ValueError)
    assert caught.value.reason
    assert "0x" not in str(caught.value)


def test_postscript_is_not_given_to_ghostscript() -> None:
    with pytest.raises(SampleError, match="known format"):
        decode_image(encoded(picture(5, 5), "EPS"), "rgb8")


def test_an_unknown_specification_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'rgb16'.*l8, rgb8"):
        imagehandler(encoded(RGBA), "rgb16")


def test_imagehandler_decodes_as_documented() -> None:
    np.testing.assert_array_equal(imagehandler(encoded(RGBA), "rgb8"), np.array(RGBA.convert("RGB")))
