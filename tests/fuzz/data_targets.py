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


def _picture(kind: str, mode: str = "RGB") -> bytes:
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


def _members() -> list[bytes]:
    pictures = [_picture(kind) for kind in ("JPEG", "PNG", "PPM", "WEBP", "BMP", "GIF", "TIFF")]
    pictures += [_picture("JPEG", "L"), _picture("JPEG", "CMYK"), _picture("PNG", "P"), _picture("PNG", "RGBA")]
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
    target.__name__: target for target in (member, manifest, tar_index, label_map)
}
SEEDS = {
    "member": _members(),
    "manifest": [_manifest()],
    "tar_index": _tar_indexes(),
    "label_map": [b'{"cat": 0, "dog": 1}'],
}
