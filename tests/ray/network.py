"""A network of its own for Ray, and programs of the tests that run in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.debian import debian_program
from tests.requirements import require
from tests.system.loaders import wait_until

__all__ = ["PATIENCE", "Program", "own_network", "short_sessions"]

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


@contextmanager
def short_sessions() -> Iterator[None]:
    """Let Ray keep its sessions in a folder whose name is short enough for its sockets, removed at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # nobody else reaches this network, and no token is left behind
        yield


@contextmanager
def own_network() -> Iterator[list[str]]:
    """A network namespace with nothing but loopback, where Ray's nodes and what they listen on reach nobody else.

    Gives the command that runs another in it.
    """
    ip = debian_program("ip", "iproute2")
    require("ray", ip is not None and os.geteuid() == 0, "a network of the cluster's own needs root and iproute2")
    assert ip is not None
    script = f"{ip} link set lo up && echo ready && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder, holder.stdin:
        assert holder.stdout.readline() == "ready\n"
        yield ["nsenter", "--target", str(holder.pid), "--net"]


class Program:
    """A Python module of the tests, in a process of its own, that is told and asked by lines."""

    def __init__(
        self, inside: list[str], module: str, *arguments: str, environment: dict[str, str] | None = None, log: Path
    ) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*inside, sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )

    def said(self) -> str:
        return self._log.read_text()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def wait_for(self, pattern: str) -> re.Match[str]:
        def look() -> bool:
            found = re.search(pattern, self.said(), re.MULTILINE)
            assert found or self.process.poll() is None, f"it ended:\n{self.said()}"
            return found is not None

        wait_until(look, PATIENCE, f"{pattern!r} of {self._log.name}")
        found = re.search(pattern, self.said(), re.MULTILINE)
        assert found is not None
        return found

    def end(self) -> int:
        """Close its input, and wait for its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
