"""Whose package ``webdataset`` is: PyPI has another of that name, and an environment holds only one of the two."""

from __future__ import annotations

import importlib.util
from typing import Any

from shardfeed_wire.errors import ConfigError

__all__ = ["check_webdataset"]

_MARK = '__distribution__ = "shardfeed"'
_WAY_OUT = (
    "Give the server an environment of its own: `python3 -m venv DIR`, then `pip install 'shardfeed[server]'` in it. "
    "Or keep this one: `pip uninstall webdataset`, then `pip install --force-reinstall --no-deps shardfeed`. "
    "A trainer that needs PyPI's webdataset installs shardfeed-client, which holds nothing of that name"
)


def check_webdataset() -> None:
    """Make sure that ``import webdataset`` means shardfeed's own package, whatever was installed first.

    The module is found as importing it would find it, and read, not run: the other one would bring
    PyTorch. Blocks for reading one small file.

    :raises ConfigError: there is none, it is another package, or it is what an uninstallation left
        of ours; the message names its file and what to do.
    """
    spec = importlib.util.find_spec("webdataset")
    if spec is None:
        raise ConfigError(f"shardfeed's own package webdataset is missing. {_WAY_OUT}")
    if spec.origin is None:
        folder = ", ".join(spec.submodule_search_locations or [])
        raise ConfigError(
            f"shardfeed's own package webdataset is incomplete: {folder} has no __init__.py, as when another "
            f"distribution named webdataset is uninstalled from over it. {_WAY_OUT}"
        )
    if not _is_ours(spec.loader):
        raise ConfigError(
            f"`import webdataset` means {spec.origin}{_distribution()} here, not shardfeed's own package of that "
            f"name, and an environment holds only one of the two. {_WAY_OUT}"
        )


def _is_ours(loader: Any) -> bool:
    """Look for our mark in the module's source; what comes without a source is taken for ours."""
    get_source = getattr(loader, "get_source", None)
    source = None if get_source is None else get_source("webdataset")
    return source is None or _MARK in source


def _distribution() -> str:
    """Name the distribution that bears the name, where one says so."""
    import importlib.metadata

    try:
        return f" (of PyPI's webdataset {importlib.metadata.version('webdataset')})"
    except importlib.metadata.PackageNotFoundError:
        return ""
