"""``local:shardfeed.toml``: a private server process that ends with the client, even if that is killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from shardfeed_wire.errors import ConfigError, ConnectError

__all__ = ["LOCAL", "LocalServer"]

LOCAL = "local:"
_STOP_SECONDS = 10.0


class LocalServer:
    """A loader server in a process of its own, on a Unix socket in a private folder.

    It watches a pipe whose other end this process holds: when that closes, by `close` or by this
    process's death, the server drains and ends, and removes its folder.
    """

    def __init__(self, endpoint: str) -> None:
        """Start the server that ``local:PATH`` describes. Does not wait for it.

        Raises ConfigError where PATH is no file.
        """
        config = Path(endpoint.removeprefix(LOCAL))
        if not config.is_file():
            raise ConfigError(f"endpoint {endpoint!r}: there is no configuration file {os.fspath(config)!r}")
        self._folder = tempfile.mkdtemp(prefix="shardfeed-")
        self.url = f"ipc://{self._folder}/feed"
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server
        reader, self._alive = os.pipe()
        command = [sys.executable, "-m", "shardfeed", "serve", "--config", os.fspath(config), "--bind", self.url]
        command += ["--curve", ""]  # nobody else reaches the folder
        try:
            self._process = subprocess.Popen(
                [*command, "--http", "off", "--no-push", "--remove-folder", "--end-with", str(reader)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[reader],
                start_new_session=True,  # Ctrl-C is for the trainer, which then closes us
            )
        except BaseException:
            os.close(self._alive)
            self._log.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            os.close(reader)
        self._owner = os.getpid()

    def check(self) -> None:
        """Raise ConnectError, with what the server printed, where it has ended."""
        code = self._process.poll()
        if code is not None:
            raise ConnectError(f"the private server ended with exit status {code}:\n{self.output()}")

    def output(self) -> str:
        """Return the end of what the server has printed."""
        self._log.seek(0)
        return self._log.read()[-8_000:].decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End the server and wait for it. Idempotent; blocks for some seconds at most."""
        if self._alive < 0:
            return
        os.close(self._alive)
        self._alive = -1
        if os.getpid() != self._owner:  # a fork: the server belongs to the parent
            return
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)
