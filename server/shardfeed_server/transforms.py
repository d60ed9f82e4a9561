"""Built-in transforms: written as text in a recipe, applied alike to all image fields of a sample."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from shardfeed_server.config import Interpolation
from shardfeed_server.draws import Draws
from shardfeed_server.resampling import Image, crop, flip, resize
from shardfeed_server.tables import nearest
from shardfeed_wire.errors import ConfigError, SampleError
from webdataset.images import Part

__all__ = ["CenterCrop", "Cut", "Flip", "Images", "RandomResizedCrop", "Resize", "Transform", "parse_transform"]

Images: TypeAlias = dict[str, Image]
"""The image fields of one sample by name: (height, width) or (height, width, channels)."""

Size: TypeAlias = tuple[int, int]
"""Height and width."""

_SCALE: Final = (0.08, 1.0)
_RATIO: Final = (3 / 4, 4 / 3)
_TRIES: Final = 10
_MOST: Final = 65_535


class Transform(Protocol):
    """One step of a recipe; its text is what a user may write for it."""

    def __call__(
        self, images: Images, interpolations: Mapping[str, Interpolation], draws: Draws, into: Images
    ) -> Images:
        """Return the transformed images; the arrays given stay as they are. Raises SampleError.

        A result may be written ``into`` an array of its name, where shape and dtype fit.
        """

    def __str__(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Resize:
    """To height x width, or where ``size`` is a number, the shorter side to that and the other in proportion."""

    size: int | Size

    def __call__(
        self, images: Images, interpolations: Mapping[str, Interpolation], draws: Draws, into: Images
    ) -> Images:
        """Resize every image field."""
        return {
            name: resize(image, *self._sizes(image), interpolations[name], into.get(name))
            for name, image in images.items()
        }

    def _sizes(self, image: Image) -> Size:
        if isinstance(self.size, tuple):
            return self.size
        height, width = image.shape[:2]
        if width <= height:
            return int(self.size * height / width), self.size
        return self.size, int(self.size * width / height)

    def __str__(self) -> str:
        return f"resize={_written(self.size)}"


@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle of the picture; zeros around a picture that is smaller."""

    size: Size

    def __call__(
        self, images: Images, interpolations: Mapping[str, Interpolation], draws: Draws, into: Images
    ) -> Images:
        """Cut the middle out of every image field."""
        height, width = _joint_size(_sizes(images), self)
        top, left = _middle(height, self.size[0]), _middle(width, self.size[1])
        return {name: crop(image, top, left, *self.size) for name, image in images.items()}

    def __str__(self) -> str:
        return f"center_crop={_written(self.size)}"


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A random part, of 8 % to 100 % of the area and a ratio of 3:4 to 4:3, resized; as torchvision chooses it."""

    size: Size

    def __call__(
        self, images: Images, interpolations: Mapping[str, Interpolation], draws: Draws, into: Images
    ) -> Images:
        """Cut one random part out of all image fields, and resize it."""
        top, left, height, width = self.choose(*_joint_size(_sizes(images), self), draws)
        return {
            name: resize(crop(image, top, left, height, width), *self.size, interpolations[name], into.get(name))
            for name, image in images.items()
        }

    @staticmethod
    def choose(height: int, width: int, draws: Draws) -> Part:
        """Return the part of a picture of this size."""
        low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
        for _ in range(_TRIES):
            area = height * width * draws.between(*_SCALE)
            ratio = math.exp(draws.between(low, high))
            part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < part_width <= width and 0 < part_height <= height:
                top = draws.below(height - part_height + 1)
                return top, draws.below(width - part_width + 1), part_height, part_width
        part_height, part_width = height, width
        if width / height < _RATIO[0]:
            part_height = round(width / _RATIO[0])
        elif width / height > _RATIO[1]:
            part_width = round(height * _RATIO[1])
        return (height - part_height) // 2, (width - part_width) // 2, part_height, part_width

    def __str__(self) -> str:
        return f"random_resized_crop={_written(self.size)}"


class Cut:
    """The part that a crop takes out of a sample's pictures while they are decoded, and not afterwards.

    It is chosen, with the draws that the crop itself would take, when the size of the first is known.
    """

    __slots__ = ("_crop", "_draws", "_part", "_sizes")

    def __init__(self, crop: RandomResizedCrop, draws: Draws) -> None:
        self._crop = crop
        self._draws = draws
        self._sizes: list[tuple[str, Size]] = []
        self._part: Part | None = None

    def of(self, name: str, height: int, width: int) -> Part:
        """Return the part of the picture of a field; of one that is not as large as the first, all: see `check`."""
        if self._part is None:
            self._part = self._crop.choose(height, width, self._draws)
        if (name, (height, width)) not in self._sizes:
            self._sizes.append((name, (height, width)))
        return self._part if (height, width) == self._sizes[0][1] else (0, 0, height, width)

    def check(self) -> None:
        """Raise SampleError where the pictures were not of one size."""
        _joint_size(self._sizes, self._crop)


@dataclass(frozen=True, slots=True)
class Flip:
    """Left and right exchanged, with a probability."""

    probability: float

    def __call__(
        self, images: Images, interpolations: Mapping[str, Interpolation], draws: Draws, into: Images
    ) -> Images:
        """Flip all image fields, or none."""
        if draws.unit() >= self.probability:
            return images
        return {name: flip(image) for name, image in images.items()}

    def __str__(self) -> str:
        return f"flip={self.probability:g}"


_EXAMPLES: Final = {
    "resize": "resize=224 or resize=224x224",
    "center_crop": "center_crop=224 or center_crop=224x224",
    "random_resized_crop": "random_resized_crop=224 or random_resized_crop=224x224",
    "flip": "flip or flip=0.5",
}


def parse_transform(text: str) -> Transform:
    """Read one transform as a recipe writes it, such as ``resize=224x224`` (height x width).

    Raises ConfigError, with the nearest name or an example, for anything else.
    """
    name, equals, argument = (part.strip() for part in text.partition("="))
    if name not in _EXAMPLES:
        raise ConfigError(f"transform {text!r}: there is none named {name!r}{nearest(name, _EXAMPLES)}")
    if name == "flip":
        return Flip(_probability(text, argument) if equals else 0.5)
    sizes = (
        [int(number) for number in re.findall(r"[0-9]+", argument)]
        if re.fullmatch(r"\d{1,9}(x\d{1,9})?", argument, re.A)
        else []
    )
    if not sizes or not all(1 <= size <= _MOST for size in sizes):
        raise ConfigError(f"transform {text!r} needs a size in pixels, 1 to {_MOST}: write {_EXAMPLES[name]}")
    height, width = sizes[0], sizes[-1]
    if name == "resize":
        return Resize(height if len(sizes) == 1 else (height, width))
    return CenterCrop((height, width)) if name == "center_crop" else RandomResizedCrop((height, width))


def _probability(text: str, argument: str) -> float:
    try:
        probability = float(argument)
    except ValueError:
        probability = -1
    if not 0 <= probability <= 1:
        raise ConfigError(f"transform {text!r} needs a probability of 0 to 1: write {_EXAMPLES['flip']}")
    return probability


def _sizes(images: Images) -> list[tuple[str, Size]]:
    return [(name, image.shape[:2]) for name, image in images.items()]


def _joint_size(sizes: Sequence[tuple[str, Size]], transform: Transform) -> Size:
    """Return the one size of all images of the sample, given with their names."""
    (_, first), *others = sizes
    if any(size != first for _, size in others):
        shown = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes)
        reason = (
            f"{transform} cuts the same part out of all image fields, but their sizes (height x width) differ: {shown}"
        )
        raise SampleError(reason, reason=f"{reason}; put resize=HEIGHTxWIDTH before it")
    return first


def _middle(size: int, wanted: int) -> int:
    """Return where the middle ``wanted`` of ``size`` pixels begin, as torchvision rounds; it may be below 0."""
    return round((size - wanted) / 2) if size >= wanted else -((wanted - size) // 2)


def _written(size: int | Size) -> str:
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
