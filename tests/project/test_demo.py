"""The demo of the README's first screen does what it says, and cleans up after itself."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DEMO = Path(__file__).parents[2] / "examples/demo.py"


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes whose command line names a file in ``folder``: the demo's servers, whoever their parent is now."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or [])
    ]


def cpu_seconds() -> float:
    """What the children that ended used, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, DEMO]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process
        process.kill()


@pytest.mark.timeout(240)
def test_the_demo_learns_the_digits_over_two_servers_and_leaves_none(
    demo: subprocess.Popen[str], temporary_folder: Path
) -> None:
    before = cpu_seconds()
    said, _ = demo.communicate()
    assert demo.returncode == 0, said
    assert cpu_seconds() - before < 90  # it promises 90 s by the clock, which here others share
    accuracy = re.search(r"held-out accuracy +([0-9.]+)% of 360", said)
    assert accuracy, said
    assert float(accuracy[1]) >= 95
    assert re.search(r"samples/s +[1-9]", said)
    assert re.search(r"waited for data +[0-9]+% of", said)
    assert processes_of(temporary_folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_stopped_stops_its_servers(
    number: signal.Signals, demo: subprocess.Popen[str], temporary_folder: Path
) -> None:
    assert demo.stdout is not None
    while "loader servers" not in (line := demo.stdout.readline()):
        assert line, "the demo ended before it had started its servers"
    assert len(processes_of(temporary_folder)) >= 2
    demo.send_signal(number)
    demo.communicate()
    assert demo.returncode != 0
    assert processes_of(temporary_folder) == []
