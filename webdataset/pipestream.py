"""What a command writes, as a stream that fails where the command fails; and a command that is written to."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from contextlib import suppress
from typing import Any

from shardfeed_wire.errors import ShardError

__all__ = ["PipeFile", "PipeStream"]

_SECONDS_TO_END = 5.0


class PipeStream(io.RawIOBase):
    """The standard output of a shell command."""

    def __init__(self, command: str, url: str) -> None:
        """Start the command.

        :param command: for ``/bin/sh``, which runs it as it stands.
        :param url: what to call it in errors.
        """
        super().__init__()
        self._command = command
        self._url = url
        # A session of its own, so that a pipeline of programs ends together.
        self._process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True, bufsize=0)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, at most a bufferful. Blocks.

        :raises ShardError: the command ended with another status than 0.
        """
        output = self._process.stdout
        assert output is not None
        count: int = output.readinto(buffer)  # type: ignore[attr-defined]  # unbuffered, so it is raw
        if count == 0:
            status = self._process.wait()
            if status != 0:
                raise ShardError(
                    f"shard {self._url}: the command {self._command!r} ended with {_said(status)}", shard=self._url
                )
        return count

    def close(self) -> None:
        """Stop the command if it still runs. Blocks until it ended."""
        if self.closed:
            return
        super().close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        try:
            # Most end by themselves, now that nobody reads.
            self._process.wait(0.1)
        except subprocess.TimeoutExpired:
            _end(self._process)


class PipeFile:
    """The standard input of a shell command, which takes what is written as one file; as `WholeFile` is used."""

    def __init__(self, url: str) -> None:
        """Start the command of ``pipe:COMMAND``, for ``/bin/sh``; ``stream`` writes to it."""
        self._url = url
        self._process = subprocess.Popen(
            url.partition(":")[2], shell=True, stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        self.stream = self._process.stdin

    def commit(self) -> None:
        """Say that this was all, and wait for the command. Blocks until it ended.

        :raises OSError: it takes no more, or ended with another status than 0.
        """
        try:
            self.stream.close()
        except BaseException:
            self.discard()
            raise
        status = self._process.wait()
        if status != 0:
            raise OSError(f"{self._url}: the command ended with {_said(status)}, so what it was given may be lost")

    def discard(self) -> None:
        """Stop the command before it can take this for all there is. Does nothing once it has ended."""
        if self._process.poll() is None:
            _end(self._process)
        with suppress(OSError):
            # Nobody reads what was still to be written.
            self.stream.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a command and all that it started, gently at first. Blocks until it ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            # It may have ended in between.
            os.killpg(process.pid, number)
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue
        return
    process.wait()


def _said(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
