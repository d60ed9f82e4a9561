"""`shardfeed advise`: how many servers a trainer needs, from what this machine's cores really do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from shardfeed_server.measure import Measured

__all__ = ["advice", "advise"]

_TRAINERS_CORES = 1
"""Cores that `local:` leaves to the trainer's own thread."""


def advise(
    config: Annotated[Path, typer.Argument(help="The configuration, shardfeed.toml, of a machine like those meant.")],
    rate: Annotated[
        float, typer.Option(min=0.001, max=1e12, help="Samples a second that the trainer takes. Required.")
    ],
    stream: Annotated[str | None, typer.Option(help="The stream.  [default: each]")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure, each time.")] = 5.0,
) -> None:
    """Decode samples here, and say how many such servers a trainer needs, or that `local:` serves it."""
    from shardfeed_server.config import load_config
    from shardfeed_server.cores import count_cores
    from shardfeed_server.measure import REQUEST_ROWS, measure

    loaded, cores = load_config(config), count_cores()
    if stream is not None and stream not in loaded.streams:
        raise ConfigError(f"{config}: no stream {stream!r}; there are: {', '.join(sorted(loaded.streams))}")
    for name in loaded.streams if stream is None else [stream]:
        print(f"stream {name}: {seconds:g} s each, {REQUEST_ROWS} samples a request in random order, no network")
        runs = []
        for workers in sorted({1, loaded.workers or cores}):
            runs.append(measure(loaded, name, workers=workers, seconds=seconds))
            print(f"  {_described(runs[-1])}", flush=True)
        for line in advice(runs[-1], rate=rate, cores=cores, config=str(config), stream=name):
            print(f"  {line}", flush=True)


def advice(measured: Measured, *, rate: float, cores: int, config: str, stream: str) -> Iterator[str]:
    """Yield the lines that say what a trainer of ``rate`` samples a second needs, and the arithmetic.

    ``measured`` is what a server with all its workers did on this machine of ``cores`` cores.
    """
    each = measured.rate / measured.workers
    needed = rate / each
    yield f"a trainer of {rate:,.6g} samples/s needs {rate:,.6g} / {each:,.0f} = {needed:.1f} workers' cores"
    free = max(cores - _TRAINERS_CORES, 0)
    left = f"{cores} cores here, less {_TRAINERS_CORES} for the trainer, are {free}"
    if needed <= free:
        yield f"{left}: enough, so it needs no server where it trains on such a machine. In the trainer:"
        yield f'  RemoteDataset("local:{config}", stream="{stream}", batch_size=64)'
        return
    servers = math.ceil(rate / measured.rate)
    yield f"{left}: too few, so `local:` would not keep up"
    yield f"servers like this one: {rate:,.6g} / {measured.rate:,.0f} = {rate / measured.rate:.2f}, so {servers}"
    yield f"  on each: shardfeed serve --config {config}"
    megabytes = rate * measured.size / measured.samples / 1e6
    yield f"  they send the trainer {megabytes:,.1f} MB/s; one more than {servers} lets one fail"


def _described(measured: Measured) -> str:
    """Say what was measured."""
    busy = (measured.reading + measured.decoding + measured.collating) or 1.0
    shares = [
        f"{name} {100 * spent / busy:.0f} %"
        for name, spent in (
            ("reading", measured.reading),
            ("decoding", measured.decoding),
            ("collating", measured.collating),
        )
    ]
    plural = "" if measured.workers == 1 else "s"
    busy_cores = measured.cpu / (measured.seconds * measured.workers)
    return (
        f"{measured.workers} worker{plural}: {measured.samples:,} samples in {measured.seconds:.1f} s, "
        f"{measured.rate:,.0f} samples/s, {measured.rate / measured.workers:,.0f} for each "
        f"({', '.join(shares)}; their cores busy {100 * busy_cores:.0f} %)"
    )
