"""The facts of a recipe: everything that changes a pixel, in words, so that a difference can be named."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

import msgspec

from shardfeed_server.fields import Field
from shardfeed_server.transforms import Transform
from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from shardfeed_server.python_transform import PythonTransform

__all__ = ["RECIPE_VERSION", "facts_of", "fingerprint_of"]

RECIPE_VERSION: Final = 1
"""Raised when shardfeed itself comes to make other pixels from the same recipe."""

# Not shardfeed-jpegcrop: with it and without, pixels and bad samples are the same (tests/server/test_crop_first.py).
_DECODERS: Final = ("numpy", "pillow", "simplejpeg", "torch")

_DRAWS_ON: Final = {"albumentations": ("albucore", "cv2")}
"""Packages that make the pixels of another."""


def facts_of(
    fields: Sequence[Field],
    transforms: Sequence[Transform],
    python: PythonTransform | None,
    code_dir: Path | None,
    *,
    max_pixels: int,
) -> dict[str, str]:
    """Return the facts of a recipe, each under its name; blocks on the source files of a Python transform.

    Raises ConfigError for a source file that cannot be read.
    """
    facts = {"recipe": str(RECIPE_VERSION), "max_pixels": str(max_pixels)}
    facts["fields"] = " ".join(field.name for field in fields)
    for field in fields:
        facts[f"field {field.name}"] = str(field)
        if field.labels is not None:
            facts[f"label_map {field.name}"] = _digest(msgspec.json.encode(sorted(field.labels.items())))
    facts["transforms"] = ", ".join(str(transform) for transform in transforms) or "none"
    facts["transform"] = "none" if python is None else python.spec
    for package in _DECODERS:
        facts[package] = _version(package)
    if python is not None:
        facts.update(_code(python, code_dir))
    return facts


def fingerprint_of(facts: dict[str, str]) -> str:
    """Return the hash of facts: 32 hex digits."""
    return _digest(msgspec.json.encode(sorted(facts.items())), size=16)


def _code(python: PythonTransform, code_dir: Path | None) -> Iterator[tuple[str, str]]:
    """Yield the digest of every source file, and the version of every other package that they import."""
    imported: set[str] = set()
    own = {"numpy", *_DECODERS, *sys.stdlib_module_names}
    for name, path in _sources(python.modules, code_dir):
        try:
            source = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"transform {python.spec!r}: {path} cannot be read: {error.strerror}") from error
        yield f"code {name}", _digest(source)
        imported |= _imports(source)
        own.add(name.partition("/")[0].removesuffix(".py"))
    for package in sorted((imported | {inner for outer in imported for inner in _DRAWS_ON.get(outer, ())}) - own):
        if version := _module_version(package):
            yield package, version


def _sources(modules: Iterable[ModuleType], code_dir: Path | None) -> list[tuple[str, Path]]:
    """Return the Python files of a transform by name: all in ``code_dir``, and those of modules elsewhere."""
    found: dict[str, Path] = {}
    if code_dir is not None:
        for path in sorted(code_dir.rglob("*.py")):
            inside = path.relative_to(code_dir)
            # A virtual environment or a version control folder beside the code is not the code.
            if not any(part.startswith(".") or (code_dir / part / "pyvenv.cfg").exists() for part in inside.parts[:-1]):
                found[inside.as_posix()] = path
    known = {path.absolute() for path in found.values()}
    for module in modules:
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and Path(file).absolute() not in known:
            found[f"{module.__name__}{Path(file).suffix}"] = Path(file)
    return list(found.items())


def _imports(source: bytes) -> set[str]:
    """Return the top-level names of all packages that Python source imports anywhere in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled module, or a file beside it that is never imported
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _version(package: str) -> str:
    """Return a package's version without its local part: builds for other devices decode alike."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "absent"


def _module_version(name: str) -> str:
    version = getattr(sys.modules.get(name), "__version__", None)
    return version.partition("+")[0] if isinstance(version, str) else ""


def _digest(data: bytes, *, size: int = 8) -> str:
    return hashlib.blake2b(data, digest_size=size).hexdigest()
