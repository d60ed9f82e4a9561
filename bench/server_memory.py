"""A server's memory: with 32 clients of which 31 do not read, and over 20 epochs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import psutil

from bench.data import arrays
from bench.results import Result, main
from bench.sides import CORES, Program, opened
from tests.system.loaders import Loader

__all__ = ["measure"]

MIB = 1 << 20
BATCH = 64
BUDGET = 256 * MIB
IDLE_CLIENTS = 31
SPARE = 5
"""Answers that a worker may keep memory for beyond the budget: four free ones, and the one it makes."""


def measure(rounds: int = 5, *, samples: int = 2048, epochs: int = 20, peers: bool = True) -> Result:
    """Watch the memory of all the server's processes while one client reads beside 31 that do not."""
    shards, _ = arrays(samples)
    size = min(BATCH, samples)
    with ExitStack() as stack:
        server = stack.enter_context(
            Loader.of(shards, "--fields", "npy cls", "--workers", str(CORES), "--send-bytes", str(BUDGET))
        )
        (reader,) = opened(stack, [Program("reader", "ours", (server.url, size, "tcp"))], peers=peers)
        idle = _megabytes(server)
        after = []
        for _ in range(epochs):
            reader.round()
            after.append(_megabytes(server))
        alone = [reader.round()["seconds"] for _ in range(rounds)]
        opened(stack, [Program("stuck", "stuck_clients", (server.url, IDLE_CLIENTS, size))], peers=peers)
        with _peak(lambda: _megabytes(server)) as peak:
            beside = [reader.round()["seconds"] for _ in range(rounds)]
    row = size * 150_528
    allowed = (BUDGET + CORES * SPARE * row) / MIB
    result = Result(
        "server_memory",
        f"PSS of all of a server's processes, shared memory included, that sends {samples:,} uint8 arrays of "
        f"224 x 224 x 3 in batches of {size} ({row / MIB:.1f} MiB), with send_bytes = {BUDGET // MIB} MiB. The bound "
        f"is that and what {CORES} workers may keep ({SPARE} answers each)",
        "MiB",
    )
    result.add("idle", [idle])
    result.add(f"above idle, beside {IDLE_CLIENTS} that do not read", [peak[0] - idle])
    result.bound(f"above idle, beside {IDLE_CLIENTS} that do not read", at_most=allowed)
    half = len(after) // 2
    result.add(f"growth from epoch {half} to {len(after)}", [max(0.0, after[-1] - max(after[:half]))])
    result.bound(f"growth from epoch {half} to {len(after)}", at_most=row / MIB)
    speed = samples * 150_528 / 1e9
    result.add("reader alone", [speed / seconds for seconds in alone], "GB/s")
    result.add(f"reader beside {IDLE_CLIENTS} that do not read", [speed / seconds for seconds in beside], "GB/s")
    return result


def _megabytes(server: Loader) -> float:
    root = psutil.Process(server.process.pid)
    return float(sum(each.memory_full_info().pss for each in (root, *root.children(recursive=True)))) / MIB


@contextmanager
def _peak(look: Callable[[], float]) -> Iterator[list[float]]:
    """Look again and again while the block runs; the one element of the list is the most that was seen."""
    most = [look()]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], look())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


if __name__ == "__main__":
    main(measure)
