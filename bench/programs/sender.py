"""The other end of a transport: a process that sends all batches of a file, again and again, each time it is told."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

__all__ = ["batches", "passes", "start"]


def batches(rows_file: str, batch_size: int) -> list[tuple[Any, Any]]:
    """Return views of the file's rows, in batches, each with its samples' numbers; the page cache holds the bytes."""
    rows = np.load(rows_file, mmap_mode="r")
    return [
        (rows[start : start + batch_size], np.arange(start, min(start + batch_size, len(rows)), dtype=np.int32))
        for start in range(0, len(rows), batch_size)
    ]


def start(serve: Callable[[Connection, list[tuple[Any, Any]]], None]) -> tuple[Connection, int]:
    """Run ``serve`` in a process of its own; give a link to it, and the number of batches in a pass.

    The command line names the file and the batch size.
    """
    made = batches(sys.argv[1], int(sys.argv[2]))
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("fork").Process(target=serve, args=(theirs, made), daemon=True).start()
    return ours, len(made)


def passes(link: Connection) -> Iterator[None]:
    """In the sending process: yield once for each pass that is asked for, until the other side is gone."""
    while True:
        try:
            link.recv()
        except EOFError:
            return
        yield
