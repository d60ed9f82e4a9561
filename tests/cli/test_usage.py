"""What the command says of itself, and of what it does not understand."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from shardfeed_cli.main import app
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
        (["bench", "tcp://127.0.0.1:1", "--step", "inf"], "--step"),
        (["advise", "a.toml", "--rate", "inf"], "--rate"),
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


PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
TREE: Any = typer.main.get_command(app)


def options_of(command: Any) -> Iterator[set[str]]:
    """Yield the spellings of each option of a command, or of all that are below it."""
    for below in getattr(command, "commands", {}).values():
        yield from options_of(below)
    for parameter in command.params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            yield {*parameter.opts, *parameter.secondary_opts}


def test_the_page_lists_every_command() -> None:
    listed = re.findall(r"^\| \[`(\w+)`\]\(#shardfeed-\1\) \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(TREE.commands)


@pytest.mark.parametrize("name", TREE.commands)
def test_the_page_has_a_section_with_the_commands_own_options_and_no_others(name: str) -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    _, title, section = prose.partition(f"\n## shardfeed {name}\n")
    assert title
    section = section.partition("\n## ")[0]
    rows = " ".join(re.findall(r"^\| (`-[^|]*) \|", section, re.MULTILINE))
    known = list(options_of(TREE.commands[name]))
    assert options_in(rows) <= set().union(*known)
    assert [option for option in known if not option & options_in(section)] == []


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
