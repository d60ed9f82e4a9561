"""What CURVE costs: the same messages over loopback with and without it, in turn. ``python -m bench.curve``."""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from shardfeed_wire.curve import load_client_keys, load_server_keys
from shardfeed_wire.keygen import make_client, make_server
from shardfeed_wire.transport import Limits, Network

MESSAGE = 64 * 224 * 224 * 3
"""Bytes: a batch of 64 pictures."""

MESSAGES = 60
ROUNDS = 5
LIMITS = Limits(frame_bytes=1 << 30)


async def _receive(url: str, keys: Path | None) -> float:
    network = Network(None if keys is None else load_client_keys(keys))
    channel = await network.connect(url, LIMITS)
    await channel.send([b"go"])
    await channel.receive()
    began = time.monotonic()
    for _ in range(MESSAGES):
        await channel.receive()
    seconds = time.monotonic() - began
    channel.close()
    network.close()
    return MESSAGE * MESSAGES / seconds


def _receiving(url: str, keys: Path | None, results: multiprocessing.SimpleQueue[float]) -> None:
    results.put(uvloop.run(_receive(url, keys)))


async def _send(keys: Path | None, client: Path | None) -> float:
    network = Network(None if keys is None else load_server_keys(keys))
    listener = network.listen("tcp://127.0.0.1:0", LIMITS)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    process = spawn.Process(target=_receiving, args=(listener.url, client, results))
    process.start()
    peer, _ = await listener.receive()
    batch = bytes(MESSAGE)
    await listener.send(peer, [b"first"])
    waiting: set[asyncio.Task[None]] = set()
    for _ in range(MESSAGES):
        waiting.add(asyncio.create_task(listener.send(peer, [batch])))
        if len(waiting) == 4:
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(*waiting)
    rate = await asyncio.to_thread(results.get)
    process.join()
    await listener.close()
    network.close()
    return rate


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = make_server(Path(folder))
        public = load_server_keys(server).public.decode()
        client = make_client(Path(folder), "client", public, allowed=Path(folder) / "clients").file
        clear, curve = [], []
        for _ in range(ROUNDS):
            clear.append(uvloop.run(_send(None, None)))
            curve.append(uvloop.run(_send(server, client)))
    print(f"clear {statistics.median(clear) / 1e6:,.0f} MB/s, CURVE {statistics.median(curve) / 1e6:,.0f} MB/s", end="")
    ratios = sorted(one / other for one, other in zip(curve, clear, strict=True))
    print(f", ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
