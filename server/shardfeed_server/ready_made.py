"""Transform objects of torchvision v2 and albumentations, called as a transform of a whole sample.

Pictures are arrays of (height, width, channels) on both sides. Neither library is imported unless
an object of it was named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from shardfeed_wire.errors import ConfigError

__all__ = ["albumentations_call", "is_albumentations", "is_torchvision", "torchvision_call"]

Call: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


def is_torchvision(target: object) -> bool:
    """Whether it is a transform object of torchvision. Raises ConfigError for one of the old kind, before v2."""
    modules = [cls.__module__ for cls in type(target).__mro__]
    if any(module.startswith("torchvision.transforms.v2") for module in modules):
        return True
    if any(module.startswith("torchvision.transforms") for module in modules):
        raise ConfigError(
            f"transform {type(target).__name__} is of torchvision.transforms, which knows one picture and no masks; "
            "use the same name from torchvision.transforms.v2, or call it in a function f(sample)"
        )
    return False


def is_albumentations(target: object) -> bool:
    """Whether it is a transform or composition of albumentations."""
    return any(cls.__module__.partition(".")[0] == "albumentations" for cls in type(target).__mro__)


def torchvision_call(target: Callable[..., Any], interpolations: Mapping[str, str]) -> Call:
    """Call a torchvision v2 transform with the image fields as Image and Mask, and bring arrays back."""
    from torchvision import tv_tensors  # type: ignore[import-untyped]

    kinds = {name: tv_tensors.Mask if way == "nearest" else tv_tensors.Image for name, way in interpolations.items()}

    def call(sample: dict[str, Any]) -> dict[str, Any]:
        given = {name: kind(_channels_first(sample[name])) for name, kind in kinds.items()}
        made = target(given)
        return {**sample, **{name: _like(sample[name], made[name]) for name in kinds}}

    return call


def albumentations_call(target: Any, interpolations: Mapping[str, str]) -> Call:
    """Call an albumentations object: the first picture as ``image``, the first mask as ``mask``, others by name."""
    pictures = [name for name, way in interpolations.items() if way != "nearest"]
    masks = [name for name, way in interpolations.items() if way == "nearest"]
    if not pictures:
        raise ConfigError(f"albumentations' {type(target).__name__} needs an image field that is not a mask")
    targets = {name: name for name in interpolations} | {pictures[0]: "image"} | ({masks[0]: "mask"} if masks else {})
    others = dict.fromkeys(pictures[1:], "image") | dict.fromkeys(masks[1:], "mask")
    if others:
        target.add_targets(others)

    def call(sample: dict[str, Any]) -> dict[str, Any]:
        made = target(**{targets[name]: sample[name] for name in interpolations})
        return {**sample, **{name: made[targets[name]] for name in interpolations}}

    return call


def _channels_first(image: Any) -> torch.Tensor:
    if isinstance(image, torch.Tensor):
        return image
    tensor = torch.from_numpy(np.array(image))
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)


def _like(given: Any, made: torch.Tensor) -> Any:
    """Bring what was made into the layout that was given: a tensor, or an array with channels last or none."""
    tensor = made.detach().as_subclass(torch.Tensor)
    if isinstance(given, torch.Tensor):
        return tensor
    array = tensor.numpy()
    return array[0] if np.ndim(given) == 2 and array.ndim == 3 else array.transpose(1, 2, 0)
