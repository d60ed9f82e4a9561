"""How fast batches of 9.6 MB come over ZeroMQ in each framing, and as plain streams. ``python -m bench.streams``.

Over TCP on the loopback, the same rows each way, all ways in turn: a `RemoteDataset` of a server that reads
them from shards, in both framings, and a `PlainDataset` of a `PlainSender` that has them in memory.
"""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from bench.data import arrays
from bench.sides import NOTHING_KEPT
from shardfeed import PlainDataset, PlainSender, RemoteDataset
from tests.system.loaders import Loader

BATCH, SAMPLES, ROUNDS = 64, 2048, 5
STEPS = SAMPLES // BATCH


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _send(url: str, framing: Any) -> None:
    batch = (torch.randint(0, 256, (BATCH, 224, 224, 3), dtype=torch.uint8), torch.arange(BATCH))
    with PlainSender(url, framing=framing) as sender:
        for _ in range(STEPS + 1):
            sender.send(batch)


def _plain(framing: Any) -> float:
    url = f"127.0.0.1:{_free_port()}"
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(f"zpush://{url}", framing))
    with PlainDataset(f"zpull://{url}", length=STEPS + 1, framing=framing) as batches:
        process.start()
        rate = _rate(batches)
    process.join()
    return rate


def _remote(url: str, framing: Any) -> float:
    with RemoteDataset(url, batch_size=BATCH, framing=framing, shared_memory=False) as batches:
        return _rate(batches)


def _rate(batches: Iterable[Any]) -> float:
    """Return the bytes a second of all batches but the first, which may wait for the other side to start."""
    pictures = iter(batches)
    next(pictures)
    began, size = time.perf_counter(), 0
    for batch in pictures:
        size += batch[0].numel()
    return size / (time.perf_counter() - began)


def main() -> None:
    shards, _ = arrays(SAMPLES)
    with Loader.of(shards, "--fields", "npy cls", *NOTHING_KEPT) as server:
        ways: dict[str, Callable[[], float]] = {
            "tcp:// multipart": lambda: _remote(server.url, "multipart"),
            "tcp:// single": lambda: _remote(server.url, "single"),
            "plain multipart": lambda: _plain("multipart"),
            "plain single": lambda: _plain("single"),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, measure in ways.items():
                rates[way].append(measure())
    first = rates["tcp:// multipart"]
    for way, found in rates.items():
        ratio = statistics.median(one / other for one, other in zip(found, first, strict=True))
        print(f"{way:<18} {statistics.median(found) / 1e6:7,.0f} MB/s, {ratio:.2f} of tcp:// multipart")


if __name__ == "__main__":
    main()
