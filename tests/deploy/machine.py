"""This machine once more, with a systemd that runs: what is written in it is gone when it ends."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["run_on_machine"]

UNITS = {
    "tests.target": "[Unit]\nRequires=tests.service\n",
    "tests.service": (
        "[Unit]\nAfter=sysinit.target basic.target systemd-journald.service\n"
        "[Service]\nType=oneshot\nTimeoutStartSec=200\n"
        "ExecStart=/bin/sh -c 'bash -e /mnt/script >/mnt/said 2>&1; echo $? >/mnt/status'\n"
        "ExecStopPost=/bin/systemctl --no-block poweroff\n"
    ),
}


OVERLAY = """
layers=$1
shift
mount -t tmpfs tmpfs "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$layers/root"
exec "$@"
"""


def run_on_machine(script: str, files: dict[str, Path], folders: dict[str, Path]) -> str:
    """Boot systemd on a copy of this machine's root, run a bash script there as root, and give what it printed.

    The copy is an overlay in memory: the machine itself stays as it is. It has no network but its own loopback. Files
    and folders of ``files`` lie at ``/mnt/NAME``, those of ``folders``, which are not copied, at the places named: the
    machine sees no folder of this one that is on another file system, or below /tmp, where it has its own.
    """
    folder = Path(tempfile.mkdtemp(prefix="sf-machine-", dir="/tmp"))
    try:
        (folder / "script").write_text(script)
        for name, path in files.items():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, folder / name)
        units = folder / "units"
        units.mkdir()
        for name, text in UNITS.items():
            (units / name).write_text(text)
        (folder / "layers").mkdir()
        nspawn = ["systemd-nspawn", "--quiet", f"--directory={folder}/layers/root", "--boot", "--register=no"]
        nspawn += ["--keep-unit", "--private-network", "--console=pipe", "--machine=shardfeed-tests"]
        nspawn += [f"--bind={folder}:/mnt", *(f"--bind-ro={units / name}:/etc/systemd/system/{name}" for name in UNITS)]
        nspawn += [f"--overlay={path}::{place}" for place, path in folders.items()]
        booted = subprocess.run(
            ["unshare", "--mount", "sh", "-ec", OVERLAY, "-", f"{folder}/layers", *nspawn, "systemd.unit=tests.target"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=230,
        )
        said = (folder / "said").read_text() if (folder / "said").exists() else ""
        status = (folder / "status").read_text().strip() if (folder / "status").exists() else "nothing"
        assert status == "0", f"the script ended with {status}:\n{said}\n{booted.stdout[-3000:]}{booted.stderr[-3000:]}"
        return said
    finally:
        shutil.rmtree(folder)
