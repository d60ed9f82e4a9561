"""The process that workers are forked from: it has imported what they need, and no name in the file system."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterable
from multiprocessing import forkserver, process, resource_tracker
from multiprocessing.context import ForkServerContext
from typing import Any

__all__ = ["start_fork_server"]

_HELD = "/proc/self/fd/"


def start_fork_server(context: ForkServerContext, preload: Iterable[str]) -> None:
    """Start it, where it does not run, with the modules ``preload``, so that a new worker is there in milliseconds.

    Blocks for the seconds that they take to be imported. It and its children never see the signals that tell the
    front to stop or to re-read, even where a whole process group is told: the front drains, and then they end with
    it. Raises OSError or EOFError where the system lets this process have no more.
    """
    context.set_forkserver_preload([*preload])
    signals = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    resource_tracker.ensure_running()  # which the fork server starts first, and unblocks two of them
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    _start_without_a_name()
    first = context.Process(target=int, daemon=True)
    first.start()
    first.join()
    first.close()


def _start_without_a_name() -> None:
    """Start it with its socket in a folder that is gone at once: a front that is killed cannot remove it later.

    multiprocessing keeps the socket in a folder until this process exits in an orderly way. It is as well reached
    through a descriptor of it. (An abstract socket would be open to every user of the machine, and what it is told
    is run.)
    """
    server: Any = forkserver._forkserver
    settings: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
    kept, before = settings.get("tempdir"), server._forkserver_address
    with tempfile.TemporaryDirectory(prefix="pymp-") as folder:
        settings["tempdir"] = folder
        try:
            server.ensure_running()
        finally:
            settings["tempdir"] = kept
            if before is not None and before.startswith(_HELD) and server._forkserver_address != before:
                os.close(int(before.removeprefix(_HELD)))  # of one that died
        if server._forkserver_address != before:
            try:
                server._forkserver_address = f"{_HELD}{os.open(server._forkserver_address, os.O_PATH)}"
            except OSError:
                os.kill(server._forkserver_pid, signal.SIGKILL)  # nobody can reach it: the next try starts another
                raise
