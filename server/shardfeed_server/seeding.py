"""Every random generator that a Python transform may draw from, put into a state that one sample decides.

The global ones of ``random``, ``numpy.random`` and ``torch``, and objects that keep a generator of
their own and ignore those, as albumentations from version 2 does. They are looked for in the globals
of the transform's modules, its closure, its arguments and its attributes, one container deep.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["Seeding"]

_PLAIN = (str, bytes, int, float, bool, type(None), type, ModuleType, np.ndarray, torch.Tensor)


class Seeding:
    """Seeds all that ``transform`` may draw from; ``modules`` are those whose globals count as its own."""

    def __init__(self, transform: Callable[..., Any], modules: tuple[ModuleType, ...]) -> None:
        self._transform = transform
        self._modules = modules

    def __call__(self, long: int, short: int) -> None:
        """Seed everything, from one integer below 2**63 and one below 2**32; own generators are looked for anew."""
        random.seed(long)
        np.random.seed(short)
        # Not torch.manual_seed, which looks at every kind of device and takes 100 times as long.
        torch.default_generator.manual_seed(long)
        for holder in self._holders():
            _seed_one(holder, long, short)

    def _holders(self) -> Iterator[object]:
        """Yield objects that may hold a generator, each once, in an order that does not depend on history."""
        seen: set[int] = set()
        for value in self._reachable():
            inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
            for candidate in (value, *inside):
                if not isinstance(candidate, _PLAIN) and id(candidate) not in seen:
                    seen.add(id(candidate))
                    yield candidate

    def _reachable(self) -> Iterator[object]:
        yield from _parts(self._transform)
        for module in self._modules:
            yield from list(vars(module).values())


def _parts(transform: object) -> Iterator[object]:
    """Yield a callable, and what it is made of: partial arguments, bound object, closure, attributes."""
    yield transform
    while isinstance(transform, functools.partial):
        yield from (*transform.args, *transform.keywords.values())
        transform = transform.func
        yield transform
    bound = getattr(transform, "__self__", None)
    if bound is not None:
        yield bound
    function = getattr(transform, "__func__", transform)
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a cell that is not filled yet holds nothing to seed
            continue
    for holder in (function, bound):
        yield from list(getattr(holder, "__dict__", {}).values())


def _seed_one(holder: object, long: int, short: int) -> None:
    if isinstance(holder, random.Random):
        holder.seed(long)
    elif isinstance(holder, np.random.Generator):
        holder.bit_generator.state = type(holder.bit_generator)(long).state
    elif isinstance(holder, np.random.RandomState):
        holder.seed(short)
    elif isinstance(holder, torch.Generator):
        holder.manual_seed(long)
    elif callable(seed := getattr(holder, "set_random_seed", None)):
        seed(short)
