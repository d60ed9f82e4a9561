"""The same targets, guided by coverage: atheris finds its way into what random bytes do not reach."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.environment import fuzzing_python
from tests.fuzz.targets import TARGETS
from tests.interop.environments import CannotInstall
from tests.requirements import require

ROOT = Path(__file__).parents[2]
SECONDS = 6
"""For each target: fifteen of them are a minute and a half, and starting them a minute more."""


@pytest.fixture(scope="module")
def python() -> Path:
    try:
        return fuzzing_python()
    except CannotInstall as error:
        require("peers", False, str(error))
        raise


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", list(TARGETS))
def test_atheris_finds_nothing(name: str, python: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-m", "tests.fuzz.fuzz_target", name, tmp_path, str(SECONDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in ("", "wire", "server", "client")),
        },
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert "Done " in said, said[-4000:]  # "Done N runs in S second(s)": it did fuzz
    runs = int(said.rsplit("Done ", 1)[1].split()[0])
    assert runs > 100, f"{runs} runs only"
