"""What tests change of the guest's kernel, and change back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

__all__ = ["raised_buffers"]


@contextlib.contextmanager
def raised_buffers(most: int) -> Iterator[None]:
    """Let sockets have send and receive buffers of up to ``most`` bytes."""
    settings = [Path("/proc/sys/net/core/wmem_max"), Path("/proc/sys/net/core/rmem_max")]
    before = [setting.read_text() for setting in settings]
    for setting in settings:
        setting.write_text(str(most))
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.write_text(value)
