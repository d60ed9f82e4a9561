"""A container engine and the images, built from what would be committed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.engine import CACHE, ROOT, NoEngineError, engine
from tests.debian import debian_program
from tests.requirements import require

Environment = dict[str, str]


@pytest.fixture(scope="session")
def docker() -> Iterator[Environment]:
    """The environment of commands that reach the engine and the base image."""
    require("container", os.geteuid() == 0 or shutil.which("docker"), "only root starts an engine")
    require("container", debian_program("docker-compose", "docker-compose"), "there is no docker-compose")
    try:
        with engine() as environment:
            base_image(environment)
            yield environment
    except NoEngineError as error:
        require("container", False, str(error))


def base_image(environment: Environment) -> None:
    """Have the base image: the one here, the registry's, or a stand-in of Debian's Python."""
    (name,) = re.findall(r"^ARG PYTHON=(\S+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    for command in (["docker", "image", "inspect", name], ["docker", "pull", "--quiet", name]):
        if subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300).returncode == 0:
            return
    require("container", debian_program("debootstrap", "debootstrap"), f"no registry gives {name}, and no debootstrap")
    subprocess.run([ROOT / "tests/cluster/base-image", name], env=environment, check=True, timeout=300)


@pytest.fixture(scope="session")
def checkout(docker: Environment) -> Path:
    """A copy of the files that git knows or would, with the wheels that the images are made of."""
    wheels = wheelhouse()
    folder = CACHE / "checkout"
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=30,
    ).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for wheel in wheels.glob("*"):
        os.link(wheel, folder / "deploy/docker/wheels" / wheel.name)
    return folder


def wheelhouse() -> Path:
    """Download what the images install, as this machine's pip is set up to; kept for the next run."""
    require(
        "container", sys.version_info[:2] == (3, 11), "the wheels are those of the tests' Python; the images have 3.11"
    )
    project = [ROOT / name for name in ("pyproject.toml", "constraints.txt", "deploy/docker/requirements")]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in project)).hexdigest()[:12]
    folder = CACHE / f"wheels-{key}"
    if not folder.exists():
        for old in CACHE.glob("wheels-*"):
            shutil.rmtree(old)
        asked = subprocess.run(
            [ROOT / "deploy/docker/requirements", "server", "objects"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-input",
            "--constraint",
            ROOT / "constraints.txt",
        ]
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run([*pip, "--dest", partial, "hatchling", "scikit-learn", *asked], check=True, timeout=300)
        partial.rename(folder)
    return folder
