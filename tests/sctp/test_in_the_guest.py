"""All of ``tests/sctp/inside`` passes under a guest kernel that has SCTP, in one boot."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.requirements import require

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
GUEST = ROOT / "tests" / "sctp" / "guest"
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
    log = tmp_path / "guest.log"
    with log.open("wb") as file:
        running = subprocess.Popen(
            [guest, "pytest", "--color=no", "--durations=10", "tests/sctp/inside"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            status = running.wait(SECONDS)
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(20)
    said = log.read_text(errors="replace")
    print(said)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", said)}
    assert status == 0, f"inside the guest:\n{said[-8000:]}"
    assert counts.get("passed", 0) > 50
    assert counts.keys() == {"passed"}


def test_the_guest_s_status_is_its_command_s_and_a_command_that_is_missing_fails(guest: Path) -> None:
    for command, status in (["bash", "-c", "exit 3"], 3), (["no-such-command"], 127):
        ran = subprocess.run([guest, *command], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        assert ran.returncode == status
    assert shutil.which("no-such-command") is None
