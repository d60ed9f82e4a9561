"""From the bytes of a field to what they stand for, by the field's extension."""

from __future__ import annotations

import functools
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import msgspec
import numpy as np

from shardfeed_wire.errors import ConfigError, SampleError
from shardfeed_wire.tenbin import decode_buffer
from webdataset.images import IMAGESPECS, MAX_PIXELS, decode_image, find_imagespec, imagehandler

__all__ = [
    "CONTAINERS",
    "Decoder",
    "DecoderSpec",
    "Handlers",
    "container_decoder",
    "decode_image",
    "decode_text",
    "default_handlers",
    "imagehandler",
    "make_decoder",
    "make_handlers",
    "maybe_int",
]

Handlers: TypeAlias = Mapping[str, Callable[[bytes], Any]]
Sample: TypeAlias = dict[str, Any]
Decoder: TypeAlias = Callable[[Any], Any]
DecoderSpec: TypeAlias = bool | str | Handlers | Decoder | None

_INTEGERS = "cls cls2 class count index inx id"
_TEXTS = "txt text transcript"
_IMAGES = "png jpg jpeg img image pbm pgm ppm"
_PICKLES = "pyd pickle pth"
_USUAL_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<>|][biufc]\d{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \((|\d{1,18},|\d{1,18}(?:, \d{1,18})+)\), \} *\n",
    re.DOTALL,
)
_MOST_UNPACKED = 1 << 30
"""Bytes of an .npz file's arrays: it may be a thousandth of that itself."""
_PIECE = 1 << 20
CONTAINERS = ("mp", "json", "ten", "pyd")


def maybe_int(data: bytes) -> int | bytes:
    """Read a decimal integer, white space around it allowed; what is none is returned as it came."""
    try:
        return int(data)
    except ValueError:
        return data


def decode_text(data: bytes) -> str:
    """Read a text in UTF-8. Raises UnicodeDecodeError where it is none."""
    return data.decode("utf-8")


def make_handlers(
    imagespec: str, *, allow_pickle: bool = False, max_pixels: int = MAX_PIXELS
) -> dict[str, Callable[[bytes], Any]]:
    """Make a new table from extensions to functions that decode a field's bytes.

    cls cls2 class count index inx id: int; txt text transcript: str; png jpg jpeg img image pbm pgm
    ppm: ``imagespec``; json jsn; ten tb: list of arrays; mp msgpack msg; npy: array; npz: dict of arrays.

    :param allow_pickle: also decode pyd, pickle and pth, which lets whoever wrote the shards run
        code here.
    :param max_pixels: as for ``decode_image``.
    :raises ConfigError: the imagespec is unknown.
    """
    find_imagespec(imagespec)
    table: list[tuple[str, Callable[[bytes], Any]]] = [
        (_INTEGERS, maybe_int),
        (_TEXTS, decode_text),
        (_IMAGES, partial(decode_image, imagespec=imagespec, max_pixels=max_pixels)),
        ("json jsn", json.loads),
        ("ten tb", decode_buffer),
        ("mp msgpack msg", msgspec.msgpack.decode),
        ("npy", _decode_npy),
        ("npz", _decode_npz),
    ]
    if allow_pickle:
        table += [("pyd pickle", _decode_pickle), ("pth", _decode_pth)]
    return {extension: function for extensions, function in table for extension in extensions.split()}


def make_decoder(spec: DecoderSpec, *, allow_pickle: bool = False) -> Decoder | None:
    """Turn a decoder as users give it into a function of samples, or None where nothing is decoded.

    :param spec: True: the defaults, images as ``rgb``; an imagespec; a table from extensions to
        functions; a function of the sample, which is returned as it is; False or None.
    :param allow_pickle: see ``make_handlers``.
    :raises ConfigError: the imagespec is unknown, or the decoder is none of these.
    """
    if spec is None or spec is False:
        return None
    if spec is True:
        spec = "rgb"
    if isinstance(spec, str):
        find_imagespec(spec)
        handlers = dict(default_handlers[spec.lower()])
        if allow_pickle:
            pickles = make_handlers(spec, allow_pickle=True)
            handlers = {**{extension: pickles[extension] for extension in _PICKLES.split()}, **handlers}
        return partial(_decode_sample, handlers=handlers)
    if isinstance(spec, Mapping):
        return partial(_decode_sample, handlers=spec)
    if callable(spec):
        return spec
    raise ConfigError(f"decoder {spec!r}: give True, False, an image specification, a dict or a function")


def container_decoder(container: str, *, allow_pickle: bool = False) -> Callable[[bytes], Any]:
    """Find the function that decodes a whole sample stored as one file.

    :raises ConfigError: the container is unknown, or ``pyd`` without ``allow_pickle``.
    """
    if container == "pyd" and not allow_pickle:
        raise ConfigError("container 'pyd' runs code from the shards: pass allow_pickle=True if you trust them")
    if container not in CONTAINERS:
        raise ConfigError(f"unknown container {container!r}: use one of {', '.join(CONTAINERS)}")
    if container == "ten":
        return _decode_tuple
    return make_handlers("rgb", allow_pickle=allow_pickle)[container]


def _decode_sample(sample: Any, handlers: Handlers) -> Any:
    """Decode the fields of a sample that are bytes and have a handler, by the longest suffix that has one."""
    if not isinstance(sample, dict):
        return sample
    decoded = {}
    for field, value in sample.items():
        if not field.startswith("_") and isinstance(value, bytes):
            handler = handlers.get(field) or handlers.get(field.rpartition(".")[2].lower())
            if handler is not None:
                value = _decode_field(sample, field, value, handler)
        decoded[field] = value
    return decoded


def _decode_field(sample: Sample, field: str, value: bytes, handler: Callable[[bytes], Any]) -> Any:
    try:
        return handler(value)
    except ConfigError:
        raise
    except Exception as error:
        key = sample.get("__key__")
        reason = getattr(error, "reason", "") if isinstance(error, SampleError) else ""
        reason = reason or f"{type(error).__name__}: {error}"
        raise SampleError(f"sample {key}, field {field}: {reason}", key=key, field=field, reason=reason) from error


def _decode_tuple(data: bytes) -> tuple[np.ndarray[Any, np.dtype[Any]], ...]:
    return tuple(decode_buffer(data))


def _decode_npy(data: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    """Decode an .npy file, over its bytes: numpy's own reader takes the memory that the header claims."""
    # Version 1 says the header's length in two bytes, version 2 in four.
    size = (
        10 + int.from_bytes(data[8:10], "little") if data[6:7] == b"\1" else 12 + int.from_bytes(data[8:12], "little")
    )
    shape, fortran_order, dtype = _npy_header(bytes(data[:size]))
    array = np.frombuffer(data, dtype, offset=size)
    return array.reshape(shape, order="F" if fortran_order else "C")


@functools.lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Parse a header, once for all the arrays that are alike: as numpy writes it, or any by Python's parser."""
    usual = _USUAL_NPY.fullmatch(header)
    if usual is not None:
        return tuple(map(int, re.findall(rb"\d+", usual[3]))), usual[2] == b"True", np.dtype(usual[1].decode())
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"npy version {version} is not read here")
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not decoded")
    return shape, fortran_order, dtype


def _decode_npz(data: bytes) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _MOST_UNPACKED:
            raise ValueError(
                f"its arrays take {unpacked:,} bytes unpacked, more than the {_MOST_UNPACKED:,} that are decoded"
            )
        return {
            member.filename.removesuffix(".npy"): _decode_npy(_unpack(archive, member)) for member in archive.infolist()
        }


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack what the member says that it holds, in pieces: in one, all that is packed would be, whatever it says."""
    with archive.open(member) as stream:
        return b"".join(iter(partial(stream.read, _PIECE), b""))


def _decode_pickle(data: bytes) -> Any:
    import pickle  # noqa: TID251 - reached only with allow_pickle=True

    return pickle.loads(data)


def _decode_pth(data: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)


default_handlers: dict[str, dict[str, Callable[[bytes], Any]]] = {spec: make_handlers(spec) for spec in IMAGESPECS}
"""``default_handlers[imagespec][extension]`` decodes bytes. Add handlers of your own as you like."""
