"""How cost grows with servers, clients and samples; decoding is a timed sleep, so that the protocol is what shows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.data import texts
from bench.results import Curve, Result, main
from bench.sides import CORES, Program, Side
from tests.system.loaders import Loader

__all__ = ["measure"]

COUNTS = (1, 2, 4, 8, 16)
SLEEP = 0.01
MOST_ROUNDS = 3
BATCH = 32
SIZES = tuple(10**exponent for exponent in range(2, 9))

TRANSFORM = f"""\
import time


def decode(sample):
    time.sleep({SLEEP})
    return sample
"""


def measure(
    rounds: int = 3,
    *,
    counts: Sequence[int] = COUNTS,
    samples: int = 65_536,
    seconds: float = 2.0,
    sizes: Sequence[int] = SIZES,
    peers: bool = True,
) -> Result:
    """Serve from 1 to 16 servers of one worker each to 1 to 16 clients, and make manifests of 10^2 to 10^8 samples.

    A round takes ``seconds`` where nothing costs anything but the sleep.
    """
    result = Result(
        "growth",
        f"servers of one worker each that sleep {SLEEP * 1000:g} ms a sample in place of decoding, all on this "
        f"machine: samples/s at the trainers, batches of {BATCH}. It shows what the protocol costs, and nothing about "
        "decoding",
    )
    rounds = min(rounds, MOST_ROUNDS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "sleeping.py").write_text(TRANSFORM)
        urls = _servers(stack, folder, texts(samples), max(counts))
        by_servers = [(count, _rate(rounds, seconds, urls[:count], 1)) for count in counts]
        by_clients = [(count, _rate(rounds, seconds, urls, count)) for count in counts]
    result.curves.append(Curve("one client, more servers", "servers", "samples/s", by_servers))
    result.curves.append(Curve(f"{max(counts)} servers, more clients", "clients", "samples/s", by_clients))
    ideal = max(counts) / SLEEP  # samples/s
    result.add(f"of what {max(counts)} sleeping workers could give, to one client", [by_servers[-1][1] / ideal], "")
    result.add(f"of what they could give, to {max(counts)} clients", [by_clients[-1][1] / ideal], "")
    _data_sets(result, sizes)
    return result


def _servers(stack: ExitStack, folder: Path, shards: Sequence[Path], count: int) -> list[str]:
    options = ["--fields", "txt cls", "--workers", "1", "--transform", "sleeping:decode", "--code-dir", str(folder)]
    arguments = [*shards, *options, "--block-bytes", "65536", "--bind", "tcp://127.0.0.1:0"]
    servers: list[Loader] = []
    while len(servers) < count:  # as many at a time as there are cores: starting is work
        begun = [stack.enter_context(Loader(arguments, wait=False)) for _ in range(min(CORES, count - len(servers)))]
        for server in begun:
            server.wait_ready()
        servers += begun
    return [server.url for server in servers]


def _rate(rounds: int, seconds: float, urls: Sequence[str], clients: int) -> float:
    """Return the samples a second that all clients together get."""
    steps = max(1, round(seconds * len(urls) / SLEEP / (clients * BATCH)))
    with Side(Program("clients", "many_clients", (clients, BATCH, steps, *urls))) as side:
        side.wait()
        said = [side.round() for _ in range(rounds + 1)][1:]
    return float(sum(each["samples"] for each in said) / sum(each["seconds"] for each in said))


def _data_sets(result: Result, sizes: Sequence[int]) -> None:
    points: dict[str, list[tuple[float, float]]] = {}
    for size in sizes:
        with Side(Program("data set", "data_set_costs", (size,))) as side:
            side.wait()
            for what, value in side.round().items():
                points.setdefault(what, []).append((size, value))
    for what, found in points.items():
        name, _, unit = what.rpartition(", ")
        result.curves.append(Curve(name, "samples", unit, found))


if __name__ == "__main__":
    main(measure)
