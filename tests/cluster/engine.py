"""A Docker engine for the tests: the one that runs here, or one of their own that leaves the machine as it was.

The tests' own engine lives in namespaces of processes and mounts, so that with it all its containers and mounts are
gone, and it touches neither the firewall nor forwarding: containers meet on a bridge, and only a build, which is given
the machine's network, reaches further. Images and layers stay in `.cache/cluster` for the next run.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.debian import debian_program

__all__ = ["CACHE", "ROOT", "NoEngineError", "engine"]

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/cluster"
START_SECONDS = 60.0
STOP_SECONDS = 60.0


class NoEngineError(Exception):
    """There is no engine, and none can be started; why."""


@contextmanager
def engine() -> Iterator[dict[str, str]]:
    """Give the environment with which `docker` and `docker-compose` reach an engine; stop it where it is our own.

    Raises NoEngineError.
    """
    if shutil.which("docker") and _answers(dict(os.environ)):
        yield dict(os.environ)
        return
    for program, package in {"dockerd": "docker.io", "docker": "docker.io"}.items():
        if debian_program(program, package) is None:
            raise NoEngineError(f"there is no {program}, and Debian's {package} cannot be installed here")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the data's folder has one engine at a time
        with _own_engine() as environment:
            yield environment


@contextmanager
def _own_engine() -> Iterator[dict[str, str]]:
    folder = Path(tempfile.mkdtemp(prefix="sf-docker-", dir="/tmp"))  # short: the sockets' names are
    environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"}
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "tini", "--", "dockerd"]
    command += ["--host", environment["DOCKER_HOST"], "--data-root", str(CACHE / "engine")]
    command += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")]
    command += ["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "PATH": f"{environment['PATH']}:/usr/sbin:/sbin", "TMPDIR": str(folder)},
            )
        try:
            _wait_for(process, environment, folder / "log")
            yield environment
            for kept in ("image", "builder"):
                old = ["docker", kept, "prune", "--force", "--filter", "until=72h"]
                subprocess.run(old, env=environment, capture_output=True, check=False, timeout=120)
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(environment: dict[str, str]) -> bool:
    asked = subprocess.run(["docker", "version"], env=environment, capture_output=True, check=False, timeout=30)
    return asked.returncode == 0


def _wait_for(process: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(environment):
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoEngineError(f"dockerd does not start here:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the engine, which is the first process of its namespace, in order; all that is left in there dies with it."""
    try:
        for child in psutil.Process(process.pid).children():  # `unshare` itself does not heed SIGTERM
            child.terminate()
        process.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, psutil.NoSuchProcess):
        process.kill()
        process.wait()
