"""The recipe: what a server does to a sample, and what tells two recipes apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardfeed_server.config import StreamConfig
from shardfeed_server.decoding import FieldDecoder, as_imagespec_says, plain_imagespec
from shardfeed_server.draws import Draws
from shardfeed_server.facts import facts_of, fingerprint_of
from shardfeed_server.fields import Field, parse_fields
from shardfeed_server.transforms import Cut, Images, RandomResizedCrop, Resize, Transform, parse_transform
from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from shardfeed_server.python_transform import PythonTransform

__all__ = ["Recipe"]


class Recipe:
    """What becomes of a sample's bytes.

    Attributes: ``fields`` in order; ``unnamed``: batches are tuples; ``extensions``: the members
    that are read; ``in_place``: the image fields that may be made in place; ``as_stored``: fields
    whose arrays are sent as they are stored, by extension; ``simple``: by field, what is done to it
    where no more is done than that says, else None; ``facts``: everything that changes a pixel, in words;
    ``fingerprint``: a hash of the facts, in hex. Making one imports the Python transform and
    blocks on the files it is made of.

    Raises ConfigError for anything in the configuration that makes no sense.
    """

    def __init__(self, config: StreamConfig, code_dir: str | Path | None = None) -> None:
        folder = None if code_dir is None else Path(code_dir)
        self.fields, self.unnamed = parse_fields(config)
        self.extensions = frozenset(extension for field in self.fields for extension in field.extensions)
        self._imagespecs = {field.name: field.imagespec for field in self.fields if field.imagespec is not None}
        self._interpolations = {field.name: field.interpolation for field in self.fields if field.imagespec is not None}
        transforms = _built_in(config.transforms, self._imagespecs)
        self._decoders = [
            FieldDecoder(field, config.max_pixels, _least(field, transforms) if field.fast else None)
            for field in self.fields
        ]
        self._crop, self._transforms = _crop_first(transforms)
        # No later one: it would read the array that it writes.
        resizing = [step for step in self._transforms if isinstance(step, Resize | RandomResizedCrop)]
        self._last_resizing = resizing[-1] if resizing else None
        self._python = None if config.transform is None else _loaded(config.transform, folder, self._interpolations)
        self._converted = _converted(self._imagespecs, self._python)
        resized = self._imagespecs if self._last_resizing is not None and self._python is None else {}
        self.in_place = frozenset(resized) - {name for name, _ in self._converted}
        self.as_stored = {} if self._python is not None else _as_stored(self.fields)
        self.simple = {decoder.name: None if self._python else decoder.simple for decoder in self._decoders}
        self.facts = facts_of(self.fields, transforms, self._python, folder, max_pixels=config.max_pixels)
        self.fingerprint = fingerprint_of(self.facts)

    def values(self, raw: Mapping[str, Any], draws: Draws, into: Images) -> list[Any]:
        """Turn a sample's bytes (``__key__`` and members by extension) into its fields' values, in order.

        A picture may be made in the array of its name in ``into``, which is then its value.
        Raises SampleError, with ``reason``, and ``field`` where one is at fault.
        """
        cut = None if self._crop is None else Cut(self._crop, draws)
        values: dict[str, Any] = {decoder.name: decoder(raw, cut) for decoder in self._decoders}
        if cut is not None:
            cut.check()
        if self._transforms:
            images = {name: values[name] for name in self._imagespecs}
            for transform in self._transforms:
                images = transform(
                    images, self._interpolations, draws, into if transform is self._last_resizing else {}
                )
            values.update(images)
        for name, imagespec in self._converted:
            values[name] = as_imagespec_says(values[name], imagespec)
        if self._python is None:
            return list(values.values())
        made = self._python({"__key__": raw["__key__"], **values}, draws)
        return [made[field.name] for field in self.fields]


def _loaded(spec: str, folder: Path | None, interpolations: Mapping[str, str]) -> PythonTransform:
    from shardfeed_server.python_transform import load_transform  # imports torch

    return load_transform(spec, folder, interpolations)


def _built_in(written: tuple[str, ...], imagespecs: Mapping[str, str]) -> tuple[Transform, ...]:
    transforms = tuple(parse_transform(text) for text in written)
    if transforms and not imagespecs:
        raise ConfigError(
            f"the transform {transforms[0]} is for image fields, and the recipe has none; "
            "give a field an extension such as jpg, or a decode of its own such as 'rgb8'"
        )
    return transforms


def _crop_first(transforms: tuple[Transform, ...]) -> tuple[RandomResizedCrop | None, tuple[Transform, ...]]:
    """Return a crop at the beginning, which the decoder makes, for it need not decode the rest; and what comes then."""
    if transforms and isinstance(first := transforms[0], RandomResizedCrop):
        return first, (Resize(first.size), *transforms[1:])
    return None, transforms


def _least(field: Field, transforms: Sequence[Transform]) -> tuple[int, int]:
    """Return the height and width that a fast field must have at least: what the first transform makes of it."""
    if not transforms or not isinstance(transforms[0], Resize):
        first = transforms[0] if transforms else "none"
        raise ConfigError(
            f'field {field.name!r}: decode = "fast" decodes a picture no larger than its resizing needs, so the first '
            f"transform must be a resize; it is {first}. Write for example resize=256 before it, or decode = 'rgb8'"
        )
    size = transforms[0].size
    return size if isinstance(size, tuple) else (size, size)


def _as_stored(fields: Iterable[Field]) -> dict[str, str]:
    return {
        field.extensions[0]: field.name
        for field in fields
        if field.imagespec is None
        and not field.raw
        and field.labels is None
        and field.collate == "stack"
        and len(field.extensions) == 1
        and field.extensions[0].rpartition(".")[2] == "npy"
    }


def _converted(imagespecs: Mapping[str, str], python: PythonTransform | None) -> list[tuple[str, str]]:
    """Return the image fields that must leave the array they were decoded to, with their imagespecs.

    A Pillow image is only made where Python code sees it: to the wire it is the same array.
    """
    different = {name: spec for name, spec in imagespecs.items() if plain_imagespec(spec) != spec}
    return [(name, spec) for name, spec in different.items() if python is not None or not spec.startswith("pil")]
