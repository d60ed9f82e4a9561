"""From values to the bytes of a field, by the field's extension: the decoders' mirror."""

from __future__ import annotations

import io
import json
import operator
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import msgspec
import numpy as np

from shardfeed_wire.errors import ConfigError, SampleError
from shardfeed_wire.tenbin import encode_buffer

__all__ = ["Encoder", "EncoderSpec", "default_encoders", "encode_image", "encode_utf8", "make_encoder"]

Sample: TypeAlias = dict[str, Any]
Encoders: TypeAlias = Mapping[str, Callable[[Any], bytes]]
Encoder: TypeAlias = Callable[[Sample], Sample]
EncoderSpec: TypeAlias = bool | Encoders | Encoder | None

_JPEG_QUALITY = 100
# What rounding in a float pipeline may do to 0 and 1, and no more.
_SLACK = 1e-3


def make_encoder(spec: EncoderSpec) -> Encoder | None:
    """Turn an encoder as users give it into a function of samples, or None where values are bytes already.

    :param spec: True: ``default_encoders``; a table from extensions to functions; a function of the
        sample, which is returned as it is; False or None.
    :raises ConfigError: it is none of these.
    """
    if spec is None or spec is False:
        return None
    if spec is True:
        spec = default_encoders
    if isinstance(spec, Mapping):
        return partial(_encode_sample, encoders=spec)
    if callable(spec):
        return spec
    raise ConfigError(f"encoder {spec!r}: give True, False, a dict or a function")


def encode_image(image: Any, image_format: str, mode: str | None = None) -> bytes:
    """Encode a picture as a file's bytes.

    :param image: a ``PIL.Image.Image``; numpy (H, W) or (H, W, C); torch (H, W) or (C, H, W); C is
        1, 3 or 4; uint8, or floats in 0..1.
    :param image_format: Pillow's name: ``PNG``, ``JPEG`` (quality 100), ``PPM``.
    :param mode: Pillow's mode to convert to first; None: as it is.
    :raises ValueError: the shape, dtype or range is another.
    :raises ConfigError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("encoding pictures needs Pillow: install shardfeed[server]") from error
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_pixels(image))
    if mode is not None:
        image = image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, image_format, **({"quality": _JPEG_QUALITY} if image_format == "JPEG" else {}))
    return stream.getvalue()


def _pixels(image: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Turn an array or tensor into uint8 (H, W) or (H, W, C)."""
    is_tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu().numpy() if is_tensor else image)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(f"an image of shape {array.shape} is neither gray, RGB nor RGBA")
    if array.dtype.kind == "f":
        # Written so that a NaN fails, too.
        if array.size and not (array.min() >= -_SLACK and array.max() <= 1 + _SLACK):
            raise ValueError(f"a float image must lie in 0..1, not {array.min()}..{array.max()}: scale it")
        array = np.rint(array.clip(0, 1) * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"an image must be uint8, or float in 0..1, not {array.dtype}")
    return np.ascontiguousarray(array)


def _encode_sample(sample: Sample, encoders: Encoders) -> Sample:
    """Encode all fields but those that are bytes or text already, or speak of the sample (``_...``)."""
    encoded = {}
    for field, value in sample.items():
        if isinstance(value, str):
            # Text is written as it is in any field, so a json field may be given as its text.
            value = value if field.startswith("_") else encode_utf8(sample.get("__key__"), field, value)
        elif not field.startswith("_") and not isinstance(value, bytes | bytearray | memoryview):
            value = _encode_field(sample, field, value, encoders)
        encoded[field] = value
    return encoded


def encode_utf8(key: str | None, field: str, text: str) -> bytes:
    """Encode a field's text. Raises SampleError where it holds what UTF-8 does not, such as half a character."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        reason = f"its text is none that UTF-8 can hold: {error.reason} at {error.start}"
        raise SampleError(f"sample {key}, field {field}: {reason}", key=key, field=field, reason=reason) from error


def _encode_field(sample: Sample, field: str, value: Any, encoders: Encoders) -> bytes:
    encoder = encoders.get(field) or encoders.get(field.rpartition(".")[2].lower())
    key = sample.get("__key__")
    if encoder is None:
        reason = f"no encoder for this extension; give bytes instead of {type(value).__name__}, or an encoder"
        raise SampleError(f"sample {key}, field {field}: {reason}", key=key, field=field, reason=reason)
    try:
        return encoder(value)
    except ConfigError:
        raise
    except Exception as error:
        reason = f"a value of type {type(value).__name__} does not encode: {error}"
        raise SampleError(f"sample {key}, field {field}: {reason}", key=key, field=field, reason=reason) from error


def _encode_integer(value: Any) -> bytes:
    return str(operator.index(value)).encode("ascii")


def _encode_arrays(value: Any) -> bytes:
    return encode_buffer(value if isinstance(value, list | tuple) else [value])


def _encode_text(value: Any) -> bytes:
    raise TypeError("it is not str")


def _encode_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8")


def _encode_npy(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, _as_numpy(value), allow_pickle=False)
    return stream.getvalue()


def _encode_npz(value: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in value.items():
            # A ZipInfo of its own has a fixed date, so that equal arrays make equal bytes.
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, _encode_npy(array))
    return stream.getvalue()


def _as_numpy(value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    return np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)


def _encode_pickle(value: Any) -> bytes:
    import pickle  # noqa: TID251 - writing one runs no code; reading one needs allow_pickle=True

    return pickle.dumps(value)


def _encode_pth(value: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def _make_encoders() -> dict[str, Callable[[Any], bytes]]:
    table: list[tuple[str, Callable[[Any], bytes]]] = [
        ("cls cls2 class count index inx id", _encode_integer),
        ("txt text transcript", _encode_text),
        ("png img image", partial(encode_image, image_format="PNG")),
        ("jpg jpeg", partial(encode_image, image_format="JPEG")),
        ("pbm", partial(encode_image, image_format="PPM", mode="1")),
        ("pgm", partial(encode_image, image_format="PPM", mode="L")),
        ("ppm", partial(encode_image, image_format="PPM", mode="RGB")),
        ("json jsn", _encode_json),
        ("ten tb", _encode_arrays),
        ("mp msgpack msg", msgspec.msgpack.encode),
        ("npy", _encode_npy),
        ("npz", _encode_npz),
        ("pyd pickle", _encode_pickle),
        ("pth", _encode_pth),
    ]
    return {extension: function for extensions, function in table for extension in extensions.split()}


default_encoders = _make_encoders()
"""``default_encoders[extension]`` encodes a value. Add encoders of your own as you like."""
