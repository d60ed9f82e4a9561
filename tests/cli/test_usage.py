"""What the command says of itself, and of what it does not understand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import COMMAND, run

COMMANDS = ("serve", "index", "pack", "info", "preview", "bench")


def test_help_names_every_command_and_needs_no_torch() -> None:
    code = (
        "import sys, time; started = time.process_time()\n"
        "from shardfeed_cli.main import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, time.process_time() - started)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True, timeout=30
    )
    *said, last = done.stdout.splitlines()
    assert all(any(line.split()[:1] == [name] for line in said) for name in COMMANDS)
    imported, seconds = last.split()
    assert imported == "False"
    assert float(seconds) < 0.5


def test_version_names_the_distribution() -> None:
    assert run("--version").stdout.startswith("shardfeed")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serve"], "--config"),
        (["serve", "a.tar"], "--fields"),
        (["serve", "a.tar", "--config", "b.toml"], "not both"),
        (["serve", "--config", "b.toml", "--max-pixels", "9"], "--max-pixels"),
        (["serve", "a.tar", "--fields", "jpg", "--wrokers", "1"], "--workers"),
        (["index", "a.tar"], "--output"),
        (["preview", "tcp://127.0.0.1:1", "-o", "a.png", "-n", "0"], "--count"),
        (["sreve"], "serve"),
    ],
)
def test_wrong_usage_names_the_option_and_exits_with_2(arguments: list[str], named: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert named in done.stderr


def test_an_error_is_one_message_without_traceback_unless_debug_is_asked_for(tmp_path: Path) -> None:
    arguments = ["index", str(tmp_path / "none.tar"), "-o", str(tmp_path / "m")]
    plain, debug = run(*arguments), run("--debug", *arguments)
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert plain.stderr.startswith("error: shard none.tar: ")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_python_dash_m_shardfeed_is_the_same_command() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "shardfeed", "index", "--help"], capture_output=True, text=True, check=True, timeout=40
    )
    assert module.stdout == subprocess.run([*COMMAND, "index", "--help"], capture_output=True, text=True).stdout


def test_without_ray_its_commands_say_how_to_get_it() -> None:
    code = "import sys; sys.modules['ray'] = None; from shardfeed_cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ray", "status"], capture_output=True, text=True, check=False, timeout=45
    )
    assert done.returncode == 1
    assert done.stderr == "error: Ray is not installed here; install it with `pip install 'shardfeed[server,ray]'`\n"
