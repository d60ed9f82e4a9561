"""SCTP against ZeroMQ over TCP: the same batches between the same two processes, in turn.

    tests/sctp/guest python -m bench.sctp

prints a line a round and the ratio of the medians. Under the guest's kernel, which has one core and
neither offloads nor a network card, only the ratio means something.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

from shardfeed_wire.errors import BrokenChannelError
from shardfeed_wire.transport import Limits, Network

LIMITS = Limits(frame_bytes=1 << 30)
ROUNDS, BATCHES = 5, 8
PIXELS = 64 * 224 * 224 * 3
LABELS = 64 * 8


def serve(ready: Connection) -> None:
    """Answer every message with one batch, over both transports."""

    async def answer() -> None:
        network = Network()
        listeners = [network.listen(f"{scheme}://127.0.0.1:0", LIMITS) for scheme in ("tcp", "sctp")]
        batch = [bytes(64), bytes(PIXELS), bytes(64), bytes(LABELS)]
        ready.send([listener.url for listener in listeners])

        async def on(number: int) -> None:
            while True:
                peer, _ = await listeners[number].receive()
                with contextlib.suppress(BrokenChannelError):  # the last batch asked for is not waited for
                    await listeners[number].send(peer, batch)

        await asyncio.gather(on(0), on(1))

    asyncio.run(answer())


async def rate(network: Network, url: str) -> float:
    """Return megabytes a second, with two batches asked for at any time."""
    channel = await network.connect(url, LIMITS)
    for _ in range(2):
        await channel.send([b"more"])
    await channel.receive()  # the connection is warm
    started, received = time.perf_counter(), 0
    for _ in range(BATCHES):
        await channel.send([b"more"])
        received += sum(memoryview(chunk).nbytes for chunk in await channel.receive())
    seconds = time.perf_counter() - started
    channel.close()
    return received / seconds / 1e6


async def compare(urls: list[str]) -> None:
    """Measure both in turn, and print the rates and their ratio."""
    network = Network()
    rates: dict[str, list[float]] = {"tcp": [], "sctp": []}
    for number in range(ROUNDS):
        for scheme, url in zip(rates, urls, strict=True):
            rates[scheme].append(await rate(network, url))
        print(f"round {number + 1}: ZeroMQ over TCP {rates['tcp'][-1]:.0f} MB/s, SCTP {rates['sctp'][-1]:.0f} MB/s")
    network.close()
    tcp, sctp = (statistics.median(rates[scheme]) for scheme in ("tcp", "sctp"))
    print(f"median: ZeroMQ over TCP {tcp:.0f} MB/s, SCTP {sctp:.0f} MB/s, ratio {sctp / tcp:.2f}")


if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    asyncio.run(compare(ours.recv()))
    server.kill()
