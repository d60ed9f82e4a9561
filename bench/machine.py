"""The machine that was measured on, and the versions of what was measured, as facts by name."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench.environments import ARROW, DALI, TENSORCOM, WEBDATASET, Peer
from bench.sides import CORES
from tests.interop.environments import ROOT

__all__ = ["facts"]

OURS = ("numpy", "pyzmq", "torch", "simplejpeg", "pillow", "uvloop")
PEERS: tuple[Peer, ...] = (WEBDATASET, DALI, ARROW, TENSORCOM)


def facts() -> dict[str, str]:
    """Return what stands beside figures, so that they can be understood and had again."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": f"{_processor()}, {CORES} cores, {_memory()}",
        "load": f"{os.getloadavg()[0]:.1f} before the row began (of what else ran on the machine)",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "ours": ", ".join(f"{name} {version(name)}" for name in OURS),
        "peers": ", ".join(peer.version for peer in PEERS),
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/performance.*")
    return (git("rev-parse", "--short", "HEAD") or "none") + (" with changes" if changed else "")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB"
