"""The environment in which atheris runs: made once and kept; it sees the packages of the tests' own."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
from pathlib import Path

from tests.interop.environments import ROOT, CannotInstall, fresh, install, run

__all__ = ["fuzzing_python"]

ATHERIS = "atheris==3.0.0"


def fuzzing_python() -> Path:
    """Give the python of an environment with atheris. Raises CannotInstall where the package index does not give it."""
    key = hashlib.sha256(f"{ATHERIS} {sys.version} {sys.prefix}".encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"fuzz-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    python, finished = folder / "environment/bin/python", folder / "finished"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(folder / "environment", ignore_errors=True)
            fresh(folder / "environment")
            try:
                install(python, "--no-deps", ATHERIS)
            except AssertionError as error:
                raise CannotInstall(f"pip cannot get {ATHERIS}: {error}") from error
            run(python, "-c", "import atheris")
            finished.touch()
    return python
