"""Environments that hold what other people's programs need, and are not ours.

Each sees PyTorch, numpy and the like of the environment that runs the tests, through a .pth file: .pth
files that lie there, such as those of editable installations, are not followed, so ``webdataset`` is
nobody's until one is installed (``fresh`` makes sure of that).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

__all__ = ["PEERS", "CannotInstall", "fresh", "install", "peers", "run"]

ROOT = Path(__file__).parents[2]
PEERS = ("webdataset==1.0.2", "tensorcom==0.1.0")
# What they need beside what the tests' environment has anyway.
NEEDED = ("braceexpand==0.1.7", "msgpack==1.2.1", "pyyaml==6.0.3")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


class CannotInstall(Exception):
    """The package index has not got, or did not give, what is needed."""


def run(*command: object, cwd: Path | None = None, timeout: float = 100) -> str:
    """Run a command, away from the checkout, and give what it printed; what it said is in the error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd=cwd or "/",
        env=environment,
    )
    if done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def fresh(folder: Path) -> Path:
    """Make an environment without pip that sees the tests' PyTorch and numpy, and no webdataset; give its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    lines = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "torch-and-numpy.pth").write_text("\n".join(lines) + "\n")
    found = run(
        python, "-c", "import importlib.util as u, numpy; print([n for n in ('webdataset',) if u.find_spec(n)])"
    )
    assert found.strip() == "[]", f"the tests' environment shows its own webdataset to others: {found}"
    return python


def install(python: Path, *what: object, wheels: Path | None = None) -> None:
    """Install with pip's resolver: from ``wheels`` alone, or else from the package index."""
    source = [] if wheels is None else ["--no-index", "--find-links", wheels]
    run(*PIP, "--python", python, "install", "--quiet", *source, *what, timeout=200)


def peers() -> tuple[Path, Path]:
    """Give the python of the environment with the peers, and the folder of their wheels, made once and kept.

    :raises CannotInstall: the package index did not give them.
    """
    key = "\n".join([*PEERS, *NEEDED, platform.python_version(), sys.prefix, Path(__file__).read_text()])
    folder = ROOT / ".cache" / f"peers-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    python, wheels, finished = folder / "environment/bin/python", folder / "wheels", folder / "finished"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(folder / "environment", ignore_errors=True)
            try:
                run(*PIP, "download", "--quiet", "--no-deps", "--dest", wheels, *PEERS, *NEEDED, timeout=200)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                raise CannotInstall(f"pip cannot get {', '.join([*PEERS, *NEEDED])}: {error}") from error
            fresh(folder / "environment")
            install(python, *PEERS, wheels=wheels)
            finished.touch()
    return python, wheels
