"""What the README and the other pages name is there: files, sections and tests. And no file was left half merged."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_TITLE = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_PROGRAM = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`(?:(?P<file>(?:tests/[\w/]+/)?test_\w+\.py)|(?P<test>test_\w+))`")


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: grep found nothing
    return done.stdout.splitlines()


PAGES = [ROOT / name for name in git("ls-files", "*.md")]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return _PROGRAM.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return what a link may name in a page, as forges make it of the titles."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in _TITLE.findall(prose(page))}


def links(page: Path) -> list[str]:
    return [link for link in _LINK.findall(prose(page)) if "://" not in link]


def leads_somewhere(page: Path, link: str) -> bool:
    target, _, anchor = link.partition("#")
    there = page.parent / target if target else page
    return there.exists() and (not anchor or anchor in anchors(there))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_section_that_exist(page: Path) -> None:
    assert [link for link in links(page) if not leads_somewhere(page, link)] == []


def test_broken_links_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, with `code`\n[a](page.md#a-title-with-code) [b](#b) [c](c.md) [d](https://example.org)\n"
    )
    assert [link for link in links(page) if not leads_somewhere(page, link)] == ["#b", "c.md"]
    assert sum(len(links(page)) for page in PAGES) > 50


def missing_tests(table: str) -> list[str]:
    """Return what the last column of a table of promises names and is not there.

    A test is of the file named before it; "the same" is the last file of the row above, and a file without a
    folder lies beside the one before it.
    """
    missing, file = [], ROOT
    for row in table.splitlines():
        for named in _NAMED.finditer(row.rpartition(" | ")[2]):
            if name := named["file"]:
                file = ROOT / name if "/" in name else file.parent / name
                if not file.is_file():
                    missing.append(name)
            elif not file.is_file() or f"def {named['test']}(" not in file.read_text(encoding="utf-8"):
                missing.append(f"{named['test']}, which is not in {file.name}")
    return missing


def test_the_tests_that_hold_the_promises_exist() -> None:
    table = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    assert len(_NAMED.findall(table)) > 50
    assert missing_tests(table) == []


def test_a_promise_that_names_another_test_is_noticed() -> None:
    row = "| A promise. | `tests/project/test_pages.py`: `test_broken_links_are_noticed`, {} |"
    assert missing_tests(row.format("`test_plain_page.py`")) == []
    assert len(missing_tests(row.format("`test_nothing`"))) == 1
    assert len(missing_tests(row.format("`tests/project/test_nothing.py`"))) == 1


def test_no_file_is_left_half_merged() -> None:
    assert git("grep", "--line-number", "-I", "-E", "^(<<<<<<<|>>>>>>>|\\|\\|\\|\\|\\|\\|\\|)( |$)") == []
