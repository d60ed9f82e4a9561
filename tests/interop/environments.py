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
from collections.abc import Callable, Container, Sequence
from pathlib import Path

__all__ = ["PEERS", "ROOT", "CannotInstall", "fresh", "install", "kept", "peers", "run"]

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


def fresh(folder: Path, without: Container[str] = ()) -> Path:
    """Make an environment without pip that sees the tests' PyTorch and numpy, and no webdataset; give its python.

    ``without`` names packages that are not to be seen; the others are then seen through links beside ``folder``.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    seen = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    if without:
        links = folder.with_name(f"{folder.name}-sees")  # outside, so that pip never takes them for its own to replace
        links.mkdir()
        for entry in (entry for lies in seen for entry in Path(lies).iterdir()):
            if entry.name.partition("-")[0].partition(".")[0] not in without and entry.suffix != ".pth":
                (links / entry.name).symlink_to(entry)
        seen = [str(links)]
    (site / "torch-and-numpy.pth").write_text("\n".join(seen) + "\n")
    found = run(
        python, "-c", "import importlib.util as u, numpy; print([n for n in ('webdataset',) if u.find_spec(n)])"
    )
    assert found.strip() == "[]", f"the tests' environment shows its own webdataset to others: {found}"
    return python


def install(python: Path, *what: object, wheels: Path | None = None, timeout: float = 200) -> None:
    """Install with pip's resolver: from ``wheels`` alone, or else from the package index.

    :raises CannotInstall: the package index did not give it.
    """
    command = ["--python", python, "install", "--quiet"]
    if wheels is None:
        from_index(*command, *what, timeout=timeout)
    else:
        run(*PIP, *command, "--no-index", "--find-links", wheels, *what, timeout=timeout)


def from_index(*arguments: object, timeout: float) -> None:
    """Run pip.

    :raises CannotInstall: the package index did not give what was asked.
    """
    try:
        run(*PIP, *arguments, timeout=timeout)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(str(error)) from error


def kept(name: str, asked: Sequence[str], make: Callable[[Path], None]) -> Path:
    """Give the folder that ``make`` filled with what is ``asked``; it is made once, and kept for later runs."""
    pins = (ROOT / "constraints.txt").read_text()  # of what the environment sees of the tests'
    key = "\n".join([*asked, platform.python_version(), sys.prefix, pins, Path(__file__).read_text()])
    folder = ROOT / ".cache" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.parent.mkdir(exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            (folder / "finished").touch()
    return folder


def peers() -> tuple[Path, Path]:
    """Give the python of the environment with the peers, and the folder of their wheels, made once and kept.

    :raises CannotInstall: the package index did not give them.
    """

    def make(folder: Path) -> None:
        wheels = folder / "wheels"
        from_index("download", "--quiet", "--no-deps", "--dest", wheels, *PEERS, *NEEDED, timeout=200)
        install(fresh(folder / "environment"), *PEERS, wheels=wheels)

    folder = kept("peers", [*PEERS, *NEEDED], make)
    return folder / "environment/bin/python", folder / "wheels"
