"""`shardfeed serve --reload`: the server as a child process, started again when its configuration or code changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from shardfeed_server.config import ServerConfig

__all__ = ["serve_and_reload"]

_LOOK_SECONDS = 0.3

Seen: TypeAlias = "dict[str, tuple[int, int]]"
"""Modification time in ns and size of each file watched."""


def serve_and_reload(file: Path | None, read: Callable[[], ServerConfig]) -> int:
    """Run this very command without ``--reload`` as a child, and anew after each change; return the exit status.

    Blocks until SIGTERM or SIGINT, which the child gets as SIGTERM, or until the child ends with 0 by
    itself. A child that fails, and a configuration that cannot be read, are reported and waited out.
    ``file`` is the configuration, ``read`` reads it anew.
    """
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: told.append(number))
    watch = _Watch(file)
    config = _read_or_report(read, "waiting for a change")
    watch.follow(config)
    child = _Child() if config is not None else None
    while not told:
        time.sleep(_LOOK_SECONDS)
        if child is not None and (status := child.status()) is not None:
            child.close()
            child = None
            if status == 0:
                return 0
            _say(f"the server ended with status {status}; waiting for a change")
        if (changed := watch.changed()) is None or told:
            continue
        config = _read_or_report(read, "the server stays as it is" if child else "waiting for a change")
        if config is None:
            continue
        watch.follow(config)
        _say(f"{changed} changed: restarting")
        if child is not None:
            child.stop()
        child = _Child()
    return child.stop() if child is not None else 0


class _Child:
    """The server's process. It ends with this one, however this one ends."""

    def __init__(self) -> None:
        reader, self._alive = os.pipe()
        arguments = [argument for argument in sys.orig_argv[1:] if argument != "--reload"]
        try:
            self._process = subprocess.Popen(
                [sys.executable, *arguments, "--end-with", str(reader)], pass_fds=[reader], stdin=subprocess.DEVNULL
            )
        finally:
            os.close(reader)

    def status(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> int:
        """Let it drain, wait for its end, and return its exit status."""
        self._process.terminate()
        status = self._process.wait()
        self.close()
        return max(status, 0)  # by SIGTERM itself, before it could say how it takes it

    def close(self) -> None:
        """Let go of a process that has ended."""
        os.close(self._alive)


class _Watch:
    """The files whose change means a restart: the configuration, and Python files in the code folder."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._code: Path | None = None
        self._seen = self._look()

    def follow(self, config: ServerConfig | None) -> None:
        """Watch the code folder of this configuration from now on; None: the one watched so far."""
        if config is not None:
            self._code = None if config.code_dir is None else Path(config.code_dir)
        self._seen = self._look()

    def changed(self) -> str | None:
        """Name a file that changed, came or went since the last look, or return None."""
        seen, before = self._look(), self._seen
        self._seen = seen
        return next((path for path in sorted(seen.keys() | before.keys()) if seen.get(path) != before.get(path)), None)

    def _look(self) -> Seen:
        seen: Seen = {}
        for path in self._paths():
            try:
                facts = path.stat()
            except OSError:  # it went meanwhile
                continue
            seen[str(path)] = (facts.st_mtime_ns, facts.st_size)
        return seen

    def _paths(self) -> Iterator[Path]:
        if self._file is not None:
            yield self._file
        if self._code is None:
            return
        for folder, inside, files in os.walk(self._code):
            # As the recipe's fingerprint: a version control folder or an environment beside the code is not the code.
            inside[:] = [name for name in inside if not name.startswith(".") and not _is_environment(folder, name)]
            yield from (Path(folder, name) for name in files if name.endswith(".py"))


def _is_environment(folder: str, name: str) -> bool:
    return Path(folder, name, "pyvenv.cfg").exists()


def _read_or_report(read: Callable[[], ServerConfig], what_now: str) -> ServerConfig | None:
    try:
        return read()
    except ConfigError as error:
        _say(f"{error}; {what_now}")
        return None


def _say(text: str) -> None:
    print(f"reload: {text}", file=sys.stderr, flush=True)
