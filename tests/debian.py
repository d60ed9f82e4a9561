"""Programs that tests speak with, from Debian's packages: installed where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess

__all__ = ["debian_program"]

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def debian_program(name: str, package: str) -> str | None:
    """The path of a program, from ``package`` where it is missing and root may install it; None where there is none."""
    if (found := shutil.which(name, path=_PATH)) is None and os.geteuid() == 0 and (apt := shutil.which("apt-get")):
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package]):
            subprocess.run(
                [apt, "--quiet", *arguments],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=300,
            )
        found = shutil.which(name, path=_PATH)
    return found
