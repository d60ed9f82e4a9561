"""A container engine and the images, built from what would be committed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.engine import CACHE, ROOT, NoEngineError, engine
from tests.debian import debian_program, unpacked
from tests.requirements import require

Environment = dict[str, str]


@pytest.fixture(scope="session")
def docker() -> Iterator[Environment]:
    """The environment of commands that reach the engine, with compose and the images that are not made here."""
    require("container", os.geteuid() == 0 or shutil.which("docker"), "only root starts an engine")
    require("container", debian_program("docker-compose", "docker-compose"), "there is no docker-compose")
    try:
        with engine() as environment, plugins(environment) as environment:
            base_image(environment)
            prometheus_image(environment)
            yield environment
    except NoEngineError as error:
        require("container", False, str(error))


@contextmanager
def plugins(environment: Environment) -> Iterator[Environment]:
    """Have `docker compose` and the builder that it takes: those here, or of the Debian after this one."""
    missing = {
        f"docker-{command}": unpacked(f"docker-{command}", "trixie")
        for command in ("compose", "buildx")
        if not succeeds(environment, "docker", command, "version")
    }
    require("container", None not in missing.values(), f"Debian's packages {list(missing)} cannot be had")
    with tempfile.TemporaryDirectory(prefix="sf-docker-") as folder:
        (Path(folder) / "cli-plugins").mkdir()
        for name, files in missing.items():
            (Path(folder) / "cli-plugins" / name).symlink_to(f"{files}/usr/libexec/docker/cli-plugins/{name}")
        yield {**environment, "DOCKER_CONFIG": folder} if missing else environment


def succeeds(environment: Environment, *command: str) -> bool:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=300
    )
    return done.returncode == 0


def has_image(environment: Environment, name: str) -> bool:
    """Have an image: the one here, or the registry's."""
    return any(succeeds(environment, "docker", *words, name) for words in (["image", "inspect"], ["pull", "--quiet"]))


def image_of(file: str, pattern: str) -> str:
    (name,) = re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)
    return str(name)


def base_image(environment: Environment) -> None:
    """Have the base image, or a stand-in of Debian's Python."""
    name = image_of("deploy/Dockerfile", r"^ARG PYTHON=(\S+)$")
    if has_image(environment, name):
        return
    require("container", debian_program("debootstrap", "debootstrap"), f"no registry gives {name}, and no debootstrap")
    subprocess.run([ROOT / "tests/cluster/base-image", name], env=environment, check=True, timeout=300)


def prometheus_image(environment: Environment) -> None:
    """Have Prometheus's image, or a stand-in with Debian's Prometheus."""
    name = image_of("docker-compose.yml", r"image: (prom/prometheus:\S+)$")
    if has_image(environment, name):
        return
    folders = [unpacked(package) for package in ("prometheus", "busybox-static")]
    require("container", None not in folders, f"no registry gives {name}, and Debian's prometheus cannot be had")
    subprocess.run([ROOT / "tests/cluster/prometheus-image", name, *map(str, folders)], env=environment, check=True)


@pytest.fixture(scope="session")
def has_grafana(docker: Environment) -> bool:
    """Whether Grafana's image can be had; nothing stands in for it."""
    return has_image(docker, image_of("docker-compose.yml", r"image: (grafana/grafana:\S+)$"))


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
    beside = folder / "deploy/docker/wheels"
    for wheel in wheels.glob("*"):
        of_torch = wheel.name.startswith("torch-")
        (index := beside / "cpu/torch").mkdir(parents=True, exist_ok=True)
        os.link(wheel, (index if of_torch else beside) / wheel.name)
        if of_torch:  # which comes from an index, as the page has it
            (index / "index.html").write_text(f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>')
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
            [ROOT / "deploy/docker/requirements", "server", "objects", "sctp"],
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
            "--no-binary=pysctp",  # as the images build it, with setuptools and wheel
            "--constraint",
            ROOT / "constraints.txt",
        ]
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(
            [*pip, "--dest", partial, "hatchling", "setuptools", "wheel", "scikit-learn", *asked],
            check=True,
            timeout=300,
        )
        partial.rename(folder)
    return folder
