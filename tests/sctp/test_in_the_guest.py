"""All of ``tests/sctp/inside`` passes under a guest kernel that has SCTP, in two boots side by side.

It takes as long as the slower of them: `pytest -s` prints how long, and what took how long inside.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.requirements import require

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
GUEST = ROOT / "tests" / "sctp" / "guest"
INSIDE = ROOT / "tests" / "sctp" / "inside"
PYTEST = ("pytest", "--color=no", "--durations=10")
WITH_SERVERS = ("epoch", "paths")
SECONDS = 600.0


@pytest.fixture(scope="session")
def guest() -> Path:
    """The script that runs a command in the guest, with all that it needs installed."""
    installed = subprocess.run(
        [GUEST.with_name("install")], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
    )
    reason = "no guest kernel: tests/sctp/install needs root and Debian's packages"
    require("guest", installed.returncode == 0, f"{reason}\n{installed.stdout}{installed.stderr}")
    require("guest", os.geteuid() == 0, "only root may let the guest mount what it needs")
    return GUEST


def test_everything_of_sctp_passes_under_a_kernel_that_has_it(guest: Path, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SHARDFEED_SKIPPED"))
    }
    environment |= {"SHARDFEED_GUEST": "yes", "SHARDFEED_REQUIRE": "all", "PYTHONPATH": str(ROOT / ".cache" / "sctp")}
    began = time.monotonic()
    with ExitStack() as stack:
        running = [
            stack.enter_context(Running([guest, *PYTEST, *files], environment, tmp_path / f"guest-{number}.log"))
            for number, files in enumerate(halves())
        ]
        ended = [each.wait(began + SECONDS) for each in running]
    passed = 0
    for each, status in zip(running, ended, strict=True):
        print(each.said)
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", each.said)}
        assert status == 0, f"inside the guest:\n{each.said[-8000:]}"
        assert counts.keys() == {"passed"}
        passed += counts["passed"]
    assert passed > 100
    print(f"both guests, side by side: {time.monotonic() - began:.0f} s")


def halves() -> tuple[list[str], list[str]]:
    """All files of tests, for two guests, each of which has one core: what starts servers, and the rest."""
    files = {str(path.relative_to(ROOT)) for path in INSIDE.glob("test_*.py")}
    with_servers = {str((INSIDE / f"test_{name}.py").relative_to(ROOT)) for name in WITH_SERVERS}
    assert with_servers < files
    return sorted(with_servers), sorted(files - with_servers)


class Running:
    """A guest that runs a command, ended with the block."""

    def __init__(self, command: list[Any], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, deadline: float) -> int:
        return self._process.wait(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)


def test_the_guest_s_status_is_its_command_s_and_a_command_that_is_missing_fails(guest: Path) -> None:
    for command, status in (["bash", "-c", "exit 3"], 3), (["no-such-command"], 127):
        ran = subprocess.run([guest, *command], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        assert ran.returncode == status
    assert shutil.which("no-such-command") is None
