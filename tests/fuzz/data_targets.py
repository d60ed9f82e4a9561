"""What is fuzzed of the data that a server reads: samples' members, manifests, tar indexes, label maps."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image as Pillow

from shardfeed_server.columns import cell_of
from shardfeed_server.config import FieldConfig, StreamConfig
from shardfeed_server.draws import Draws
from shardfeed_server.recipe import Recipe
from shardfeed_wire.errors import ConfigError, SampleError, ShardError
from shardfeed_wire.tenbin import encode_buffer
from tests.webdataset.tars import numbered_files, tar_bytes
from webdataset.foreign_index import index_from_foreign
from webdataset.images import Part, decode_image
from webdataset.indexing import index_shards
from webdataset.manifest import Manifest

__all__ = ["SEEDS", "TARGETS"]

SHARD = tar_bytes(numbered_files(range(3), size=90))
MAX_PIXELS = 1 << 16

_FIELDS = [
    FieldConfig(ext="jpg"),
    FieldConfig(ext="jpg", decode="l8"),
    FieldConfig(ext="jpg", decode="rgba"),
    FieldConfig(ext="jpg", decode="fast"),
    FieldConfig(ext="npy"),
    FieldConfig(ext="npy", collate="pad", max_len=2),
    FieldConfig(ext="npz"),
    FieldConfig(ext="ten", collate="ragged"),
    FieldConfig(ext="json"),
    FieldConfig(ext="mp"),
    FieldConfig(ext="txt"),
    FieldConfig(ext="cls"),
    FieldConfig(ext="cls", label_map={"cat": 0}),
    FieldConfig(ext="bin", decode=False),
]
_RECIPES = [
    Recipe(
        StreamConfig(
            shards="x",
            fields={"x": field},
            max_pixels=MAX_PIXELS,
            transforms=("resize=9", "random_resized_crop=4x5", "flip") if field.ext == "jpg" else (),
        )
    )
    for field in _FIELDS
]


def member(data: bytes) -> None:
    """One member of a sample: its first byte says how it is decoded."""
    recipe = _RECIPES[data[0] % len(_RECIPES)] if data else _RECIPES[0]
    (field,) = recipe.fields
    try:
        (value,) = recipe.values({"__key__": "k", field.extensions[0]: data[1:]}, Draws(0, 0, 0), {})
        cell = cell_of(value, field)
    except SampleError:
        return
    assert cell.kind in ("dense", "ragged", "text", "bytes", "json")


def picture_part(data: bytes) -> None:
    """A part, which the first four bytes choose, of a picture: it is that part of the whole, and bad where that is."""
    rows, columns, down, across = (*data[:4], 0, 0, 0, 0)[:4]

    def part(height: int, width: int) -> Part:
        part_height, part_width = 1 + (height - 1) * rows // 255, 1 + (width - 1) * columns // 255
        return (height - part_height) * down // 255, (width - part_width) * across // 255, part_height, part_width

    whole, made = _picture(data[4:]), _picture(data[4:], part)
    if isinstance(whole, np.ndarray):
        top, left, height, width = part(*whole.shape[:2])
        whole = whole[top : top + height, left : left + width]
    assert np.array_equal(made, whole)


def _picture(data: bytes, part: Callable[[int, int], Part] | None = None) -> np.ndarray | str:
    """Return the pixels, or why there are none."""
    try:
        return decode_image(data, "rgb8", max_pixels=MAX_PIXELS, part=part)
    except SampleError as error:
        return error.reason


def manifest(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".ten") as file:
        file.write(data)
        file.flush()
        try:
            loaded = Manifest.load(file.name)
        except ConfigError:
            return
        assert loaded.samples * 18 <= len(data)


def tar_index(data: bytes) -> None:
    try:
        index = index_from_foreign(data, lambda at, size: SHARD[at : at + size], len(SHARD), 0)
    except ShardError:
        return
    assert int((index.starts + index.lengths).max()) <= len(SHARD)


def label_map(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(data)
        file.flush()
        try:
            Recipe(StreamConfig(shards="x", fields={"x": FieldConfig(ext="cls", label_map=file.name)}))
        except ConfigError:
            return


def _written(kind: str, mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)).convert(mode).save(stream, kind)
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", _npy(np.zeros(90)))
    return stream.getvalue()


def _parts() -> list[bytes]:
    """Pictures that are decoded in part: of several blocks each way, in colour and gray, with restarts."""
    pixels = (np.mgrid[:40, :50].sum(axis=0)[:, :, None] * [3, 5, 7]).astype(np.uint8)
    options = (
        {"subsampling": 0},
        {"subsampling": 2},
        {"restart_marker_blocks": 1},
        {"keep_rgb": True},
        {"progressive": True},
    )
    made = []
    for mode, how in (*(("RGB", how) for how in options), ("L", {})):
        stream = io.BytesIO()
        Pillow.fromarray(pixels).convert(mode).save(stream, "JPEG", **how)
        made.append(bytes([90, 60, 200, 150]) + stream.getvalue())
    return made


def _members() -> list[bytes]:
    pictures = [_written(kind) for kind in ("JPEG", "PNG", "PPM", "WEBP", "BMP", "GIF", "TIFF")]
    pictures += [_written("JPEG", "L"), _written("JPEG", "CMYK"), _written("PNG", "P"), _written("PNG", "RGBA")]
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2, np.bool_), np.zeros(2, ">i2"), np.array(3.0)]
    stored = {
        "npy": [_npy(array) for array in arrays],
        "npz": [_npz()],
        "ten": [encode_buffer(arrays[:1])],
        "json": [b'{"a": [1, -2.5e3, null, true, "\\u00e9"]}'],
        "mp": [msgspec.msgpack.encode({"a": [1, -2.5, None, True, "é", b"raw"]})],
        "txt": ["é text".encode()],
        "cls": [b" 17\n", b"cat"],
        "bin": [b"raw"],
        "jpg": pictures,
    }
    return [bytes([number]) + data for number, field in enumerate(_FIELDS) for data in stored[field.ext]]


def _manifest() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        shards = [Path(folder) / name for name in ("a.tar", "b.tar")]
        for shard in shards:
            shard.write_bytes(SHARD)
        index_shards(shards, block_bytes=100).save(Path(folder) / "m.ten")
        return (Path(folder) / "m.ten").read_bytes()


def _tar_indexes() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "a.tar"
        shard.write_bytes(SHARD)
        made = index_shards([shard])
    ends = (made.starts + made.lengths).tolist()
    with tarfile.open(fileobj=io.BytesIO(SHARD)) as archive:
        files = [f"{file.name.rpartition('.')[2]} {file.offset_data} {file.size} {file.name}" for file in archive]
    dali = "\n".join(
        ["v1.2 3", *(f"{one} {other}" for one, other in zip(files[::2], files[1::2], strict=True)), ""]
    ).encode()
    return [np.array([*made.starts.tolist(), ends[-1]], "<u8").tobytes(), dali]


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (member, picture_part, manifest, tar_index, label_map)
}
SEEDS = {
    "member": _members(),
    "picture_part": _parts(),
    "manifest": [_manifest()],
    "tar_index": _tar_indexes(),
    "label_map": [b'{"cat": 0, "dog": 1}'],
}
