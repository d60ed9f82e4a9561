"""What a test may leave behind: nothing. Threads, descriptors, child processes and temporary files are compared.

Some things are one a process and stay for its life on purpose; they are made before the first test, or
named here: the threads of pyzmq's process-wide context, and multiprocessing's helper processes.
"""

from __future__ import annotations

import gc
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import threading
import time
from collections.abc import Hashable, Iterator
from pathlib import Path

import psutil

__all__ = ["Resources", "left_over", "resources"]

Resources = dict[Hashable, str]
"""What this process holds at one moment, and what each thing is called; nothing where it is not a test's to end."""

SETTLE_SECONDS = 5.0
"""How long what a test closed may take to be gone."""

HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "torch_shm_manager")
"""Command lines of processes that Python or torch starts once, and keeps for the life of this process."""


def resources(temporary: Path) -> Resources:
    """Take stock. ``temporary`` is the folder where the code under test makes its temporary files and sockets."""
    return dict([*_threads(), *_descriptors(), *_processes(), *_files(temporary)])


def left_over(before: Resources, temporary: Path) -> list[str]:
    """Name what is there now and was not ``before``, after waiting up to ``SETTLE_SECONDS`` for it to go."""
    deadline = time.monotonic() + SETTLE_SECONDS
    found = _new(before, resources(temporary))
    while found and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
        found = _new(before, resources(temporary))
    return found


def _new(before: Resources, now: Resources) -> list[str]:
    return [name for key, name in now.items() if name and key not in before]


def _threads() -> Iterator[tuple[Hashable, str]]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        number = int(task.name)
        try:
            name = names.get(number) or (task / "comm").read_text().strip()
        except OSError:  # ended meanwhile
            continue
        # Of the threads that libraries start in C only libzmq's are ours to end: they live as long as their context.
        # torch's and OpenMP's pools grow when they please.
        ours = number in names or name.startswith("ZMQ")
        yield ("thread", number), f"thread {name} ({number})" if ours else ""


def _descriptors() -> Iterator[tuple[Hashable, str]]:
    fork_server = multiprocessing.forkserver._forkserver
    helpers = {
        str(multiprocessing.resource_tracker._resource_tracker._fd),
        str(fork_server._forkserver_alive_fd),
        (fork_server._forkserver_address or "").rpartition("/")[2],
    }
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208 - iterdir would hold a descriptor of its own while we look
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
        except OSError:  # the listing's own
            continue
        yield ("descriptor", entry, target), "" if entry in helpers else f"descriptor {entry} -> {target}"


def _processes() -> Iterator[tuple[Hashable, str]]:
    for child in psutil.Process().children(recursive=True):
        try:
            ended = child.status() == psutil.STATUS_ZOMBIE
            command = "(ended, not waited for)" if ended else " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
        helper = any(each in command for each in HELPERS)
        yield ("process", child.pid), "" if helper else f"process {child.pid} {command}"


def _files(temporary: Path) -> Iterator[tuple[Hashable, str]]:
    for path in sorted(temporary.iterdir()):
        # pymp-... is multiprocessing's own folder, one a process, removed at its exit.
        yield ("file", path), "" if path.name.startswith("pymp-") else f"file {path}"
