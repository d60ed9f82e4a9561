"""A transform written in Python: ``transform = "module:name"``, loaded from the server's ``code_dir``.

What may be named: a function f(sample, rng) -> sample or f(sample) -> sample; a transform of
torchvision v2; a composition or transform of albumentations. `docs/recipe.md` is the user's side.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from shardfeed_server.draws import Draws
from shardfeed_server.ready_made import albumentations_call, is_albumentations, is_torchvision, torchvision_call
from shardfeed_server.seeding import Seeding
from shardfeed_server.tables import nearest
from shardfeed_wire.errors import ConfigError, SampleError

__all__ = ["PythonTransform", "Sample", "load_transform"]

Sample: TypeAlias = dict[str, Any]
"""A sample as Python code sees it: ``__key__`` and the recipe's fields by name."""


class PythonTransform:
    """A loaded transform: ``spec`` as the recipe names it, and ``modules``, whose source decides what it does."""

    def __init__(
        self, spec: str, call: Callable[..., Any], *, takes_rng: bool, seeding: Seeding, modules: tuple[ModuleType, ...]
    ) -> None:
        self.spec = spec
        self.modules = modules
        self._call = call
        self._takes_rng = takes_rng
        self._seeding = seeding

    def __call__(self, sample: Sample, draws: Draws) -> Sample:
        """Return the transformed sample. Random generators are seeded first, so what was before does not matter.

        Raises SampleError, with the traceback, where the code raises, returns something else than a
        dict, or leaves a field out.
        """
        fields = [name for name in sample if name != "__key__"]
        self._seeding(*draws.seeds())
        try:
            made = self._call(sample, draws.generator()) if self._takes_rng else self._call(sample)
        except Exception as error:
            raised = "".join(traceback.format_exception_only(error)).strip()
            reason = f"the transform {self.spec} raised {raised}"
            raise SampleError(reason, reason=reason, server_traceback=traceback.format_exc()) from error
        if not isinstance(made, Mapping):
            reason = f"the transform {self.spec} returned {type(made).__name__}, not a dict; it must return the sample"
            raise SampleError(reason, reason=reason)
        if missing := [name for name in fields if name not in made]:
            reason = f"the transform {self.spec} returned a sample without its field {missing[0]!r}; return every field"
            raise SampleError(reason, reason=reason, field=missing[0])
        return dict(made)


def load_transform(spec: str, code_dir: Path | None, interpolations: Mapping[str, str]) -> PythonTransform:
    """Import ``module:name``; ``code_dir`` is put first on ``sys.path``, and stays there.

    ``interpolations`` names the image fields, in order, and says which of them are masks (nearest).
    Raises ConfigError, naming module, folder and the traceback's last line, where that fails.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not module_name or not name:
        raise ConfigError(f"transform {spec!r} names no object; write module:name, for example my_augment:train")
    if code_dir is not None and not code_dir.is_dir():
        raise ConfigError(f"transform {spec!r}: code_dir {code_dir} is no folder; give --code-dir the module's")
    if code_dir is not None and sys.path[:1] != [str(code_dir.absolute())]:
        sys.path.insert(0, str(code_dir.absolute()))
    where = f"code_dir {code_dir}" if code_dir is not None else "no code_dir is set"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        raise ConfigError(
            f"transform {spec!r}: the module {module_name} cannot be imported ({where}): {last}; "
            "give --code-dir the folder that holds it, and correct what it raises"
        ) from error
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        raise ConfigError(f"transform {spec!r}: {module.__file__ or module_name} has no {name!r}{nearest(name, names)}")
    target = getattr(module, name)
    modules = _own_modules(module, code_dir)
    seeding = Seeding(target, modules)
    if is_torchvision(target):
        call: Callable[..., Any] = torchvision_call(target, interpolations)
    elif is_albumentations(target):
        call = albumentations_call(target, interpolations)
    elif callable(target) and not isinstance(target, type):
        return PythonTransform(spec, target, takes_rng=_takes_rng(spec, target), seeding=seeding, modules=modules)
    else:
        raise ConfigError(f"transform {spec!r} is {target!r}, which cannot be called; name a function f(sample, rng)")
    return PythonTransform(spec, call, takes_rng=False, seeding=seeding, modules=modules)


def _own_modules(module: ModuleType, code_dir: Path | None) -> tuple[ModuleType, ...]:
    """Return the module and those imported from ``code_dir``, by name."""
    own = {module.__name__: module}
    if code_dir is not None:
        folder = code_dir.absolute()
        for name, other in list(sys.modules.items()):
            file = getattr(other, "__file__", None)
            if isinstance(file, str) and Path(file).is_relative_to(folder):
                own[name] = other
    return tuple(own[name] for name in sorted(own))


def _takes_rng(spec: str, function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some callables in C have no signature; they take the sample
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in positional if p.default is p.empty]
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 2 or keyword_only or not (positional or takes_any):
        raise ConfigError(
            f"transform {spec!r} has the parameters {inspect.signature(function)}; write f(sample, rng) or f(sample)"
        )
    return len(needed) == 2 or (len(positional) > 1 and positional[1].name == "rng")
