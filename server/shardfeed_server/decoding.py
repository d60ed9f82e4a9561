"""From the bytes of a sample's fields to values: pictures, numbers, text, arrays, objects."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image as Pillow

from shardfeed_server.fields import Field
from shardfeed_server.resampling import Image
from shardfeed_server.transforms import Cut
from shardfeed_wire.errors import SampleError
from webdataset.decode import decode_text, make_handlers, maybe_int
from webdataset.images import decode_image, find_imagespec

__all__ = ["ABSENT", "FieldDecoder", "Simple", "as_imagespec_says", "plain_imagespec"]

ABSENT: Final = "the field is absent"
"""How the reason begins why a sample without a field is bad."""

_Decode: TypeAlias = Callable[..., Any]
_PLAIN = {"L": "l", "RGB": "rgb", "RGBA": "rgba"}


class Simple(NamedTuple):
    """A field that is one member's bytes, or the number, text or JSON that they say."""

    extension: str
    kind: Literal["number", "text", "bytes", "json"]


class FieldDecoder:
    """Finds one field among a sample's bytes and decodes it; pictures always to arrays, channels last.

    ``simple`` says how where there is not more to it.
    """

    __slots__ = ("_decoders", "_is_picture", "_labels", "name", "simple")

    def __init__(self, field: Field, max_pixels: int, least: tuple[int, int] | None = None) -> None:
        """``least`` is the height and width that a picture needs, where it may be decoded smaller than it is."""
        self.name = field.name
        self._labels = field.labels
        self._is_picture = field.imagespec is not None
        self._decoders = [(extension, _decoder(field, extension, max_pixels, least)) for extension in field.extensions]
        self.simple = _simple(field, *self._decoders[0])

    def __call__(self, raw: Mapping[str, Any], cut: Cut | None = None) -> Any:
        """Return the field's value, or of a picture the part that ``cut`` says.

        Raises SampleError, with ``field`` and ``reason``.
        """
        for extension, decode in self._decoders:
            if extension in raw:
                value = raw[extension]
                if decode is not None and type(value) is not np.ndarray:  # read as one: see `straight`
                    if cut is not None and self._is_picture:
                        decode = partial(decode, part=partial(cut.of, self.name))
                    value = self._decoded(extension, decode, value)
                return value if self._labels is None else self._label(value)
        raise self._absent(raw)

    def _decoded(self, extension: str, decode: _Decode, data: bytes) -> Any:
        try:
            return decode(data)
        except SampleError as error:
            raise SampleError(str(error), field=self.name, reason=error.reason or str(error)) from error
        except Exception as error:
            reason = f".{extension} does not decode: {type(error).__name__}: {error}"
            trace = traceback.format_exc()
            raise SampleError(reason, field=self.name, reason=reason, server_traceback=trace) from error

    def _absent(self, raw: Mapping[str, Any]) -> SampleError:
        wanted = " or ".join(f".{extension}" for extension, _ in self._decoders)
        others = ", ".join(f".{name}" for name in raw if name != "__key__") or "none"
        reason = f"{ABSENT}: there is no {wanted} (of the recipe's other fields: {others})"
        return SampleError(reason, field=self.name, reason=reason)

    def _label(self, value: object) -> int:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        number = self._labels.get(text.strip()) if self._labels is not None else None
        if number is None:
            reason = f"the label {text.strip()[:100]!r} is not in the field's label_map"
            raise SampleError(reason, field=self.name, reason=reason)
        return number


def plain_imagespec(imagespec: str) -> str:
    """Return the imagespec of the same numbers in an array: ``torchrgb`` -> ``rgb``, ``pil`` -> ``rgb8``."""
    spec = find_imagespec(imagespec)
    return _PLAIN[spec.mode] + ("" if spec.scaled else "8")


def as_imagespec_says(image: Image, imagespec: str) -> Any:
    """Turn an array, channels last, into what ``imagespec`` names: itself, a torch tensor (C, H, W), a Pillow image."""
    kind = find_imagespec(imagespec).kind
    if kind == "torch":
        import torch

        return torch.from_numpy(np.ascontiguousarray(image[None] if image.ndim == 2 else image.transpose(2, 0, 1)))
    return Pillow.fromarray(image) if kind == "pil" else image


def _simple(field: Field, extension: str, decode: _Decode | None) -> Simple | None:
    if len(field.extensions) > 1 or field.labels is not None:
        return None
    if decode is maybe_int:
        return Simple(extension, "number")
    if field.collate != "stack":  # which texts and bytes refuse
        return None
    if decode is None:
        return Simple(extension, "bytes")
    if decode is json.loads:
        return Simple(extension, "json")
    return Simple(extension, "text") if decode is decode_text else None


def _decoder(field: Field, extension: str, max_pixels: int, least: tuple[int, int] | None) -> _Decode | None:
    if field.raw:
        return None
    if field.imagespec is not None:
        return partial(decode_image, imagespec=plain_imagespec(field.imagespec), max_pixels=max_pixels, least=least)
    handlers: Mapping[str, _Decode] = make_handlers("rgb8", max_pixels=max_pixels)
    return handlers.get(extension) or handlers.get(extension.rpartition(".")[2])
