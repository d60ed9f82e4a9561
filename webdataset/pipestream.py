"""What a command writes, as a stream that fails where the command fails."""

from __future__ import annotations

import io
import os
import signal
import subprocess
from typing import Any

from shardfeed_wire.errors import ShardError

__all__ = ["PipeStream"]

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
            self._end(signal.SIGTERM)
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._end(signal.SIGKILL)
                self._process.wait()

    def _end(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            # It ended in between.
            return


def _said(status: int) -> str:
    return f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
