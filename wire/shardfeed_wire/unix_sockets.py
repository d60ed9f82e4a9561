"""The files of Unix sockets, which outlive whoever bound them."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["closed_to_others", "remove_stale_socket"]


@contextlib.contextmanager
def closed_to_others() -> Iterator[None]:
    """Keep users outside the group from opening a Unix socket bound meanwhile, even where the umask is 0."""
    before = os.umask(0o777)
    os.umask(before | stat.S_IRWXO)
    try:
        yield
    finally:
        os.umask(before)


def remove_stale_socket(path: Path) -> None:
    """Remove a Unix socket that a killed server left; ZeroMQ would take over a living one's as well.

    Raises OSError where another process listens there, and where it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(f"{os.fspath(path)} exists and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        else:
            raise OSError("another process listens there")
