"""What a module offers is its ``__all__``: nothing public is missing from it, and it is sorted."""

from __future__ import annotations

import importlib
import pkgutil
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cli/shardfeed_cli", "client/shardfeed", "server/shardfeed_server", "webdataset", "wire/shardfeed_wire")


def modules() -> list[str]:
    """Every public module of ours, and every package."""
    names = []
    for package in PACKAGES:
        folder = ROOT / package
        names.append(folder.name)
        names += [
            module.name
            for module in pkgutil.walk_packages([str(folder)], f"{folder.name}.")
            if not any(part.startswith("_") for part in module.name.split("."))
        ]
    return sorted(names)


def rank(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as ruff's RUF022 sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def public(module: types.ModuleType) -> set[str]:
    """The names without an underscore that a module defines, or that a package's ``__init__`` gathers."""
    is_package = hasattr(module, "__path__")
    found = set()
    for name, value in vars(module).items():
        home = getattr(value, "__module__", None)
        if name.startswith("_") or isinstance(value, types.ModuleType) or name == "annotations":
            continue
        if is_package and (home or "").split(".")[0] in {Path(package).name for package in PACKAGES}:
            found.add(name)
        if isinstance(value, type | types.FunctionType) and home == module.__name__:
            found.add(name)
    return found


def test_all_five_packages_are_looked_at() -> None:
    assert {name for name in modules() if "." not in name} == {Path(package).name for package in PACKAGES}
    assert "shardfeed_wire.errors" in modules()


@pytest.mark.parametrize("name", modules())
def test_every_public_name_is_in_all_and_all_is_sorted(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert public(module) - set(exported) == set()
    assert [missing for missing in exported if not hasattr(module, missing)] == []
    assert list(exported) == sorted(exported, key=rank)
