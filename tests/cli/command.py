"""The real command in a process of its own: run to its end, or as a server that is watched."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["COMMAND", "Running", "run", "started"]

COMMAND = [sys.executable, "-c", "from shardfeed_cli.main import main; main()"]
"""What the script `shardfeed` does, wherever that is installed."""

PATIENCE = 45.0
"""Seconds within which what a test waits for must come: many times what it takes on an idle machine."""


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; ``stdout`` and ``stderr`` are text."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd=cwd)


class Running:
    """A command that goes on; what it prints, on either stream, is in ``said()``."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self._log = process, log

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until ``pattern`` was printed ``count`` times; give what its group, or all of it, matched."""
        self.wait_until(lambda: len(re.findall(pattern, self.said(), re.MULTILINE)) >= count)
        return re.findall(pattern, self.said(), re.MULTILINE)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition()``; fail where the command ends before that."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, f"what was waited for did not come; it said:\n{self.said()}"
            time.sleep(0.05)

    def endpoint(self) -> str:
        """Wait until it serves, and give its first endpoint."""
        return self.wait_for(r"^listening on (\S+):")[0]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop, wait for its end, and give its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def started(*arguments: str | Path, log: Path, pass_fds: Sequence[int] = ()) -> Iterator[Running]:
    """Start the command, as from a shell but not on a terminal; it is killed where it does not end by itself."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    try:
        yield Running(process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
