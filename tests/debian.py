"""Programs that tests speak with, from Debian's packages: installed where that is allowed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["debian_program", "unpacked"]

_CACHE = Path(__file__).parents[1] / ".cache/debian"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def debian_program(name: str, package: str) -> str | None:
    """The path of a program, from ``package`` where it is missing and root may install it; None where there is none."""
    found = shutil.which(name, path=_PATH)
    if found is None and os.geteuid() == 0 and (apt := shutil.which("apt-get")):
        with _alone():
            if shutil.which(name, path=_PATH) is None:  # nobody installed it while this one waited
                _run_apt(apt, ["update"], ["install", "--yes", "--no-install-recommends", package])
        found = shutil.which(name, path=_PATH)
    return found


def unpacked(package: str, suite: str | None = None) -> Path | None:
    """A folder with the files of a package that needs no other, kept from run to run; None where it cannot be had.

    For a package whose installation would start a service, or one of another ``suite`` of the archive that this
    machine's packages come from. Nothing is installed.
    """
    folder = _CACHE / (package if suite is None else f"{package}-{suite}")
    if folder.exists() or (apt := shutil.which("apt-get")) is None or shutil.which("dpkg-deb") is None:
        return folder if folder.exists() else None
    with _alone(), tempfile.TemporaryDirectory(dir=_CACHE) as scratch:
        options = [] if suite is None else _of_suite(apt, suite, Path(scratch))
        for arguments in (["download", package], ["update"], ["download", package]):
            if folder.exists():
                break
            _run_apt(apt, [*options, *arguments], cwd=scratch)
            if found := list(Path(scratch).glob("*.deb")):
                made = Path(scratch) / "files"
                subprocess.run(["dpkg-deb", "--extract", found[0], made], check=True, timeout=100)
                made.replace(folder)
    return folder if folder.exists() else None


@contextmanager
def _alone() -> Iterator[None]:
    """Let one process of the tests at a time have apt, which does not wait for another; tests/sctp/install, too."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run_apt(apt: str, *commands: list[str], cwd: str | None = None) -> None:
    for arguments in commands:
        subprocess.run(
            [apt, "--quiet", *arguments],
            cwd=cwd,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=300,
        )


def _of_suite(apt: str, suite: str, scratch: Path) -> list[str]:
    """Options with which apt knows one suite alone, of the archive that it takes Debian's packages from."""
    listed = [apt, "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
    archives = subprocess.run(listed, capture_output=True, text=True, check=False, timeout=30).stdout.split()
    lines = [f"deb [signed-by={_KEYS}] {archive} {suite} main\n" for archive in archives[:1]]
    (scratch / "sources.list").write_text("".join(lines))
    (scratch / "lists/partial").mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": scratch / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch,
        "APT::Sandbox::User": "root",  # another could not write here
    }
    return [f"--option={name}={value}" for name, value in settings.items()]
