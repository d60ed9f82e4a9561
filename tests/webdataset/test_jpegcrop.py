"""A part of a JPEG, made without the rest, is that part of the whole; and damage outside of it is still noticed."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest
import simplejpeg
from PIL import Image

import webdataset.images
from shardfeed_wire.errors import SampleError
from tests.requirements import require
from webdataset.images import Part, decode_image, decodes_parts

DecodePart = Callable[[bytes, Any, int, int], None]

SIZES = [(1, 1), (3, 2), (8, 16), (17, 33), (64, 64), (101, 203), (203, 31)]


@pytest.fixture
def decode_part() -> DecodePart:
    require("jpegcrop", decodes_parts(), "shardfeed-jpegcrop is not installed: scripts/install says what it needs")
    from shardfeed_jpegcrop import decode_part

    return decode_part


def scene(height: int, width: int) -> np.ndarray:
    """Smooth parts, edges and noise."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 128, (height, width))
    planes = [127 + 127 * np.sin(x / 7 + y / 11), 255 * ((x // 9 + y // 5) % 2), noise + 60]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def pillows(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


def sampled(jpeg: bytes, factors: int) -> bytes:
    """Write other sampling factors into the header of a gray picture, for which they mean nothing."""
    header = jpeg.index(b"\xff\xc0")
    return jpeg[: header + 11] + bytes([factors]) + jpeg[header + 12 :]


def sequential(height: int, width: int) -> list[bytes]:
    """Pictures of a size in every form that is decoded in part."""
    pixels = scene(height, width)
    gray = pillows(pixels[:, :, 1].copy(), restart_marker_blocks=3)
    return [
        *(simplejpeg.encode_jpeg(pixels, 92, colorsubsampling=way) for way in ("444", "422", "420", "440", "411")),
        *(pillows(pixels, subsampling=way, restart_marker_rows=1) for way in (0, 1, 2)),
        pillows(pixels, quality=30, restart_marker_blocks=2, optimize=True),
        pillows(pixels, keep_rgb=True),
        gray,
        *(sampled(gray, factors) for factors in (0x21, 0x22, 0x41)),
    ]


def some_part(height: int, width: int, draw: random.Random) -> Part:
    """A part of any size, often at an edge."""
    rows, columns = draw.randint(1, height), draw.choice([1, draw.randint(1, width), width])
    top = draw.choice([0, height - rows, draw.randint(0, height - rows)])
    return top, draw.choice([0, width - columns, draw.randint(0, width - columns)]), rows, columns


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_part_has_the_pixels_of_the_whole_in_all_forms_of_jpeg(
    decode_part: DecodePart, size: tuple[int, int]
) -> None:
    draw = random.Random(0)
    for jpeg in sequential(*size):
        colours = simplejpeg.decode_jpeg_header(jpeg)[2]
        for spec in ("GRAY", "RGB") if colours == "Gray" else ("RGB",):
            whole = simplejpeg.decode_jpeg(jpeg, spec)
            for _ in range(40):
                top, left, height, width = some_part(*size, draw)
                part = np.empty((height, width, whole.shape[2]), np.uint8)
                decode_part(jpeg, part, top, left)
                np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def part_of_seed(seed: float, height: int, width: int) -> Part:
    return some_part(height, width, random.Random(seed))


def spoilt(jpeg: bytes, draw: random.Random) -> bytes:
    """Cut a file off, or change, lose or add some bytes, mostly of its compressed data."""
    way = draw.randrange(5)
    if way == 0:
        return jpeg[: draw.randint(3, len(jpeg))]
    if way == 1:
        return jpeg[: -draw.randint(1, 9)]
    data, scan = bytearray(jpeg), jpeg.index(b"\xff\xda")
    for _ in range(draw.choice([1, 1, 3])):
        at = draw.randrange(3 if draw.random() < 0.3 else scan, len(data))
        if way == 2:
            data[at] ^= 1 << draw.randrange(8)
        elif way == 3:
            del data[at]
        else:
            data.insert(at, draw.choice([0, 0xFF, 0xD0 + draw.randrange(10)]))
    return bytes(data)


def outcome(jpeg: bytes, spec: str, part: Callable[[int, int], Part]) -> Any:
    """What decoding gives: pixels, or why there are none."""
    try:
        return decode_image(jpeg, spec, max_pixels=1 << 20, part=part)
    except SampleError as error:
        return error.reason


def test_a_damaged_picture_is_bad_or_good_for_every_part_as_it_is_as_a_whole(
    decode_part: DecodePart, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    class Counting:
        @staticmethod
        def decode_part(*arguments: Any) -> None:
            made.append(False)
            decode_part(*arguments)
            made[-1] = True

    draw = random.Random(1)
    pictures = [*sequential(70, 90), pillows(scene(70, 90), progressive=True), pillows(scene(9, 300))]
    for jpeg in (spoilt(draw.choice(pictures), draw) for _ in range(1000)):
        seed, spec = draw.random(), draw.choice(["rgb8", "l8", "torchrgb"])
        results = []
        for jpegcrop in (Counting, None):
            monkeypatch.setattr(webdataset.images, "_import_jpegcrop", lambda jpegcrop=jpegcrop: jpegcrop)
            results.append(outcome(jpeg, spec, partial(part_of_seed, seed)))
        np.testing.assert_array_equal(*results)
    assert made.count(True) > 100
    assert made.count(False) > 300


@pytest.mark.parametrize("spec", ["rgb8", "l8", "rgba8", "l", "torchrgb", "torchl8", "pil"])
@pytest.mark.parametrize("kind", ["JPEG", "progressive", "gray", "CMYK", "PNG"])
def test_a_part_of_any_format_is_that_of_the_whole(spec: str, kind: str) -> None:
    image = Image.fromarray(scene(50, 61))
    image = image.convert({"gray": "L", "CMYK": "CMYK"}.get(kind, "RGB"))
    stream = io.BytesIO()
    image.save(stream, "PNG" if kind == "PNG" else "JPEG", progressive=kind == "progressive")
    sizes = []

    def part(height: int, width: int) -> Part:
        sizes.append((height, width))
        return 7, 20, 11, 30

    whole, cut = decode_image(stream.getvalue(), spec), decode_image(stream.getvalue(), spec, part=part)
    assert set(sizes) == {(50, 61)}
    if spec == "pil":
        assert cut.tobytes() == whole.crop((20, 7, 50, 18)).tobytes()
        return
    np.testing.assert_array_equal(cut, whole[..., 7:18, 20:50] if "torch" in spec else whole[7:18, 20:50])
    assert cut.is_contiguous() if "torch" in spec else cut.flags.c_contiguous and cut.flags.writeable


def test_a_part_is_made_without_the_whole(decode_part: DecodePart, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = pillows(scene(50, 61))
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    assert decode_image(jpeg, "rgb8", part=lambda height, width: (0, 0, height - 9, width)).shape == (41, 61, 3)
    with pytest.raises(SampleError, match="30 x 20 = 600 pixels is above max_pixels = 599"):
        decode_image(pillows(scene(20, 30)), "rgb8", max_pixels=599, part=lambda *_: (0, 0, 1, 1))


@pytest.mark.parametrize(
    ("jpeg", "part", "said"),
    [
        (b"", (0, 0, 1, 1), "Empty input file"),
        (b"\xff\xd8\xff", (0, 0, 1, 1), "Premature end"),
        (pillows(scene(20, 30))[:-2], (0, 0, 1, 1), "Premature end"),
        (pillows(scene(20, 30)), (0, 0, 21, 30), "inside the picture"),
        (pillows(scene(20, 30)), (1, 0, 20, 30), "inside the picture"),
        (pillows(scene(20, 30)), (0, 30, 1, 1), "inside the picture"),
        (pillows(scene(20, 30)), (-1, 0, 1, 1), "top and left must be 0 to 65500"),
        (pillows(scene(20, 30)), (0, 1 << 40, 1, 1), "top and left must be 0 to 65500"),
        (pillows(scene(20, 30)), (0, 0, 0, 1), "height and a width of 1 to 65500"),
        (pillows(scene(20, 30), progressive=True), (0, 0, 1, 1), "sequential Huffman"),
        (sampled(pillows(scene(20, 30)[:, :, 0].copy()), 0x44), (0, 0, 1, 1), "unusual resolution"),
    ],
)
def test_what_cannot_be_made_is_a_value_error_in_libjpegs_words_or_ours(
    decode_part: DecodePart, jpeg: bytes, part: Part, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=said):
        decode_part(jpeg, np.empty((*part[2:], 3), np.uint8), *part[:2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "into",
    [
        bytes(3),
        bytearray(3),
        np.zeros((1, 1), np.uint8),
        np.zeros((1, 1, 4), np.uint8),
        np.zeros((1, 1, 3), np.uint16),
        np.zeros((4, 4, 3), np.uint8)[:, ::2],
    ],
    ids=["bytes", "bytearray", "two axes", "four channels", "two bytes each", "not contiguous"],
)
def test_memory_that_is_no_picture_is_not_written_to(decode_part: DecodePart, into: Any) -> None:
    with pytest.raises((ValueError, TypeError, BufferError)):
        decode_part(pillows(scene(20, 30)), into, 0, 0)
    assert not np.any(np.asarray(into if isinstance(into, np.ndarray) else list(into)))


def test_what_is_no_memory_at_all_is_a_type_error(decode_part: DecodePart) -> None:
    with pytest.raises(TypeError):
        decode_part(pillows(scene(20, 30)), None, 0, 0)


def test_one_channel_of_a_picture_in_colour_is_refused_for_luma_is_not_what_pillow_makes_gray(
    decode_part: DecodePart,
) -> None:
    with pytest.raises(ValueError, match="gray pictures alone"):
        decode_part(pillows(scene(20, 30)), np.empty((1, 1, 1), np.uint8), 0, 0)


def test_neither_good_nor_bad_pictures_leave_memory_behind(decode_part: DecodePart) -> None:
    good, process = pillows(scene(40, 600)), psutil.Process()
    jpegs = [good, good[:-2], good[:100], pillows(scene(9, 9), progressive=True), b""]
    into = np.empty((9, 9, 3), np.uint8)

    def decode(rounds: int) -> None:
        for jpeg in jpegs * rounds:
            try:
                decode_part(jpeg, into, 0, 0)
            except ValueError:
                continue

    decode(20)
    before = process.memory_info().rss
    decode(300)  # a decoder holds more than 50 kB
    assert process.memory_info().rss - before < 4 << 20
