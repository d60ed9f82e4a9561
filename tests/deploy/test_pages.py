"""No page of docs/deploy has a command that no test runs: each has a test that holds it to that."""

from __future__ import annotations

import re

import pytest

from tests.deploy.pages import FOLDER, Page

TESTS = FOLDER.parents[1] / "tests"
PAGES = sorted(path.name for path in FOLDER.glob("*.md"))
PROGRAMS = {"docker", "docker-compose", "export", "kubectl", "pip", "python", "ray", "sbatch", "shardfeed", "systemctl"}


def program(command: str) -> str:
    """The first word of a command, after the variables that are set for it."""
    return next((word for word in command.split() if "=" not in word), "")


def source_of(page: str) -> str:
    """The source of the test that makes a page's commands its own, and fails where it has not run one of them."""
    (found,) = (
        text
        for text in (path.read_text() for path in TESTS.glob("*/test_*.py"))
        if f'Page("{page}")' in text and "page.check()" in text
    )
    return found


def loose_commands(text: str) -> list[str]:
    """Commands in a page's sentences and tables, where they stand in no block."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", prose)
    return [span for span in spans if " " in span and program(span) in PROGRAMS]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_held_to_its_commands(page: str) -> None:
    assert source_of(page)  # raises ValueError where there is none
    blocks = re.findall(r"^```(\w+)$", (FOLDER / page).read_text(), re.MULTILINE)
    assert set(blocks) <= {"sh", "toml", "yaml", "json", "python"}  # a command in another block would be overlooked
    assert Page(page).commands


@pytest.mark.parametrize("page", PAGES)
def test_a_command_in_a_sentence_is_run_too(page: str) -> None:
    source = source_of(page)
    for command in loose_commands((FOLDER / page).read_text()):
        known = any(command in each for each in Page(page).commands) or all(word in source for word in command.split())
        assert known, f"nothing runs `{command}`"


def test_a_command_that_was_not_run_is_noticed() -> None:
    page = Page(PAGES[0])
    left = page.commands[-1]
    for command in page.commands[:-1]:
        page.command(command)
    with pytest.raises(AssertionError, match=re.escape(left)):
        page.check()
    assert loose_commands("Say `A=1 docker compose up` and `docker`.\n```sh\n`pip install x`\n```\n") == [
        "A=1 docker compose up"
    ]
