"""Where the time goes: the CPU of every part of the path of batches that are not decoded, by TCP and shared memory."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil

from bench.data import arrays
from bench.results import Result, main
from bench.sides import NOTHING_KEPT
from shardfeed import RemoteDataset
from tests.system.loaders import Loader

__all__ = ["measure"]

BATCH = 64
WAYS = {"TCP": False, "shared memory": True}
PARTS = (
    "workers",
    "front, its loop",
    "front, ZeroMQ's thread",
    "trainer, network thread",
    "trainer, ZeroMQ's thread",
    "trainer, the loop over batches",
)
ALL, KERNEL = "all of it", "of that, in the kernel"


def measure(rounds: int = 5, *, samples: int = 8192, peers: bool = True) -> Result:
    """Count CPU seconds by thread and process over passes of batches of 9.6 MB; this process is the trainer."""
    shards, _ = arrays(samples)
    size = min(BATCH, samples)
    result = Result(
        "where",
        f"CPU seconds for each GB, by part: {samples:,} uint8 arrays of 224 x 224 x 3 in batches of {size} from one "
        "server to a trainer beside it. What raw transports have of it is the kernel's part of ZeroMQ's two threads; "
        "they read no shard",
        "s / GB",
    )
    with ExitStack() as stack:
        server = stack.enter_context(Loader.of(shards, "--fields", "npy cls", *NOTHING_KEPT))
        for way, shared in WAYS.items():
            spent = [_of_a_pass(each, samples) for each in _passes(server, size, shared, rounds)]
            for part in (*PARTS, ALL, KERNEL):
                result.add(f"{way}: {part}", [each[part] for each in spent])
    return result


def _of_a_pass(spent: Counter[str], samples: int) -> dict[str, float]:
    gigabytes = samples * 150_528 / 1e9
    return {part: spent[part] / gigabytes for part in (*PARTS, ALL, KERNEL)}


def _passes(server: Loader, size: int, shared: bool, rounds: int) -> Iterator[Counter[str]]:
    """Go through the samples again and again, and yield what each pass but the first took."""
    with RemoteDataset(server.url, batch_size=size, shared_memory=shared) as dataset:
        for number in range(rounds + 1):
            before = _spent(server)
            for _ in dataset:
                pass
            if number:
                yield _spent(server) - before


def _spent(server: Loader) -> Counter[str]:
    """Return the CPU seconds so far of each part, of all, and of all what was the kernel's."""
    spent: Counter[str] = Counter()
    for process in (psutil.Process(server.process.pid), *server.workers(), psutil.Process()):
        for thread in process.threads():
            spent[_part(server, process.pid, thread.id)] += thread.user_time + thread.system_time
            spent[ALL] += thread.user_time + thread.system_time
            spent[KERNEL] += thread.system_time
    return spent


def _part(server: Loader, process: int, thread: int) -> str:
    if process not in (server.process.pid, os.getpid()):
        return "workers"
    side = "front" if process == server.process.pid else "trainer"
    if Path(f"/proc/{process}/task/{thread}/comm").read_text().startswith("ZMQ"):
        return f"{side}, ZeroMQ's thread"
    if side == "front":
        return "front, its loop"
    own = thread == threading.main_thread().native_id
    return "trainer, the loop over batches" if own else "trainer, network thread"


if __name__ == "__main__":
    main(measure)
