"""The environment that holds the frameworks in their current releases, and our client as it lies in the checkout."""

from __future__ import annotations

from pathlib import Path

from tests.interop.environments import ROOT, fresh, install, kept

__all__ = ["FRAMEWORKS", "frameworks"]

FRAMEWORKS = (
    "accelerate==1.15.0",
    "ipykernel==7.4.0",
    "lightning==2.6.6",
    "nbclient==0.11.0",
    "ray[train]==2.60.0",
    "transformers==5.24.0",
)


def frameworks() -> Path:
    """Give the environment's python.

    :raises CannotInstall: the package index did not give the frameworks.
    """

    def make(folder: Path) -> None:
        # They import torchvision where they find it, and the one of the tests does not import by itself.
        python = fresh(folder / "environment", without={"torchvision", "shardfeed"})
        (site,) = (folder / "environment").glob("lib/python*/site-packages")
        (site / "client.pth").write_text(f"{ROOT / 'client'}\n{ROOT / 'wire'}\n")
        install(python, *FRAMEWORKS, timeout=500)

    return kept("frameworks", FRAMEWORKS, make) / "environment/bin/python"
