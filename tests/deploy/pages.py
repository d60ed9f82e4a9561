"""The pages of docs/deploy: which commands they give, and that a test ran each."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["Page"]

FOLDER = Path(__file__).parents[2] / "docs/deploy"
BLOCK = re.compile(r"^```sh\n((?:.*\n)*?)```$", re.MULTILINE)


class Page:
    """A page's commands: those of its ``sh`` blocks, one a line, with continued lines joined and without comments."""

    def __init__(self, name: str) -> None:
        text = (FOLDER / name).read_text(encoding="utf-8")
        blocks = "".join(BLOCK.findall(text)).replace("\\\n", " ")
        lines = (re.sub(r"\s+", " ", line.partition("  #")[0]).strip() for line in blocks.splitlines())
        self.commands = [line for line in lines if line]
        self._not_run = list(self.commands)

    def command(self, *words: str) -> str:
        """Give the page's shortest command that begins with the first and has all words, to be run now."""
        found = min(
            (line for line in self.commands if line.startswith(words[0]) and all(word in line for word in words)),
            key=len,
        )
        if found in self._not_run:
            self._not_run.remove(found)
        return found

    def check(self) -> None:
        """Fail where the page has a command that was not run."""
        assert not self._not_run, f"nothing runs {self._not_run}"
