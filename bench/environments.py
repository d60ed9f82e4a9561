"""The environments of the programs that we are compared with: one each, made once, kept under ``.cache``."""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.interop.environments import NEEDED, ROOT, CannotInstall, fresh, install

__all__ = ["ARROW", "DALI", "TENSORCOM", "WEBDATASET", "Peer", "python_of"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that does the same work: its name, what pip installs for it, and what pip's resolver is spared.

    ``alone`` are installed without what they ask for: it is there (numpy, torch), or of no use on a CPU.
    """

    name: str
    alone: tuple[str, ...]

    @property
    def version(self) -> str:
        """What is compared, as a person names it."""
        return self.alone[0].replace("==", " ")


WEBDATASET = Peer("webdataset", ("webdataset==1.0.2", *NEEDED))
TENSORCOM = Peer("tensorcom", ("tensorcom==0.1.0", *NEEDED))
ARROW = Peer("arrow", ("pyarrow==26.0.1",))
DALI = Peer(  # without what it asks for to use a GPU, which is gigabytes
    "dali",
    (
        "nvidia-dali-cuda120==2.4.0",
        "astunparse==1.6.3",
        "gast==0.7.0",
        "libcst==1.9.0",
        "makefun==1.16.0",
        "nvidia-nvimgcodec-cu12==0.9.0.20",
        "nvtx==0.2.17",
        "optree==0.20.0",
        "six==1.17.0",
    ),
)


@cache
def python_of(peer: Peer | None) -> Path:
    """Return the python that has the peer, or ours for None; the first call installs it, which takes a minute.

    Raises CannotInstall where the package index does not give it.
    """
    if peer is None:
        return Path(sys.executable)
    key = "\n".join([*peer.alone, platform.python_version(), sys.prefix, Path(__file__).read_text()])
    folder = ROOT / ".cache" / f"bench-{peer.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    python, finished = folder / "environment/bin/python", folder / "finished"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            shutil.rmtree(folder / "environment", ignore_errors=True)
            fresh(folder / "environment")
            try:
                install(python, "--no-deps", *peer.alone)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                raise CannotInstall(f"pip cannot get {', '.join(peer.alone)}: {error}") from error
            finished.touch()
    return python
