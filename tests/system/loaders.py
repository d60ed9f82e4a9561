"""Loader servers as a user starts them: the command, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import psutil

from tests.photographs import Photograph, write_shards

__all__ = ["Loader", "wait_until", "write_photographs"]

START_SECONDS = 40.0
STOP_SECONDS = 20.0


def wait_until(condition: Callable[[], object], seconds: float = 20.0, what: str = "the condition") -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.02)


def write_photographs(folder: Path, photographs: Iterable[Photograph], count: int, name: str = "train") -> list[Path]:
    """Write photographs as jpg + cls into ``count`` shards."""
    samples = [(key, {"jpg": jpeg, "cls": str(label).encode()}) for key, jpeg, label in photographs]
    return write_shards(folder, samples, count, name)


class Loader:
    """``shardfeed serve ARGUMENTS``, ready to be asked when it is made; ``endpoints`` are those that it printed.

    ``inside`` is a command that runs it, ``ip netns exec NAME`` for example.
    """

    def __init__(
        self,
        arguments: Iterable[str | os.PathLike[str]],
        *,
        wait: bool = True,
        http: str | None = "off",
        inside: Iterable[str] = (),
    ) -> None:
        command = [*inside, sys.executable, "-m", "shardfeed", "serve", *map(os.fspath, arguments)]
        if http is not None and "--http" not in command:
            command += ["--http", http]  # off: it takes a quarter of a second of every start
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.endpoints: list[str] = []
        self._ready: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            self.wait_ready()

    @classmethod
    def of(
        cls, shards: Iterable[Path], *options: str, bind: Iterable[str] = ("tcp://127.0.0.1:0",), wait: bool = True
    ) -> Self:
        """Serve shards as the one stream, jpg + cls to tuples, unless the options say otherwise."""
        fields = [] if "--fields" in options else ["--fields", "jpg;png cls"]
        return cls([*shards, *fields, *options, *(part for url in bind for part in ("--bind", url))], wait=wait)

    def wait_ready(self) -> None:
        try:
            assert self._ready.get(timeout=START_SECONDS), f"the server ended:\n{self.output}"
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                if found := re.match(r"listening on (\S+?):? ", line):
                    self.endpoints.append(found[1])
                if line.startswith("read "):
                    self._ready.put(True)
        self._ready.put(False)

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def url(self) -> str:
        return self.endpoints[0]

    def workers(self) -> list[psutil.Process]:
        """The worker processes: the fork server's children."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            parent = child.parent()
            if parent is not None and parent.pid != self.process.pid:
                found.append(child)
        return found

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        code = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        return code

    def stop(self) -> int:
        """Drain it and return its exit status."""
        if self.process.poll() is None:
            self.tell(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        family = self._family()
        self.process.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # they end by themselves once the front is gone
                process.kill()
        self.wait()

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        else:
            self.wait()
