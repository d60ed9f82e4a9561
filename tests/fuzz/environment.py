"""The environment in which atheris runs: made once and kept; it sees the packages of the tests' own."""

from __future__ import annotations

from pathlib import Path

from tests.interop.environments import fresh, install, kept, run

__all__ = ["fuzzing_python"]

ATHERIS = "atheris==3.0.0"


def fuzzing_python() -> Path:
    """Give the python of an environment with atheris. Raises CannotInstall where the package index does not give it."""

    def make(folder: Path) -> None:
        python = fresh(folder / "environment")
        install(python, "--no-deps", ATHERIS)
        run(python, "-c", "import atheris")

    return kept("fuzz", [ATHERIS], make) / "environment/bin/python"
