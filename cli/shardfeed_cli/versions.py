"""What is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["software"]


def software() -> str:
    """Return the distribution and its version, such as ``shardfeed 0.1.0``."""
    try:
        return f"shardfeed {version('shardfeed')}"
    except PackageNotFoundError:
        return "shardfeed, not installed"
