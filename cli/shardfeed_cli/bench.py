"""`shardfeed bench`: how fast running servers feed one trainer, and what that waits for."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shardfeed import RemoteDataset, Stats

__all__ = ["bench"]


def bench(
    endpoints: Annotated[str, typer.Argument(help="The server or servers, as for RemoteDataset.")],
    stream: Annotated[
        str | None, typer.Option(help="The stream.  [default: the server's only one, else default]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 64,
    seconds: Annotated[float, typer.Option(min=0.001, help="How long to read; epochs follow each other.")] = 10.0,
    step: Annotated[
        float, typer.Option(min=0.0, max=86_400, help="Seconds for which the trainer is busy with each batch.")
    ] = 0.0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for a server, and for a batch.")] = 30.0,
    curve: Annotated[
        str | None, typer.Option(help="This client's key file, of `shardfeed keygen`, for servers with --curve.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON.")] = False,
) -> None:
    """Read from servers as a trainer does, and print samples/s, bytes/s, how long batches were waited for, and why."""
    from shardfeed import RemoteDataset
    from shardfeed_cli.streams import only_stream

    dataset = RemoteDataset(
        endpoints,
        stream=stream or only_stream(endpoints, timeout, curve),
        batch_size=batch_size,
        seed=secrets.randbits(63),  # a trainer's own would share in what servers decode for that one
        rank=0,
        world_size=1,
        on_error="mask",
        connect_timeout=timeout,
        timeout=timeout,
        curve=curve,
    )
    with dataset:
        len(dataset)  # connects
        first, stats = _read(dataset, seconds, step)
    print(_as_json(stats, first) if as_json else f"the first batch came after {1000 * first:.3g} ms\n{stats}")


def _read(dataset: RemoteDataset, seconds: float, step: float) -> tuple[float, Stats]:
    """Take batches, epoch after epoch, for some seconds; give the seconds that the first one took, and the figures."""
    began = time.perf_counter()
    batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(dataset))
    next(batches)
    first = time.perf_counter() - began
    while time.perf_counter() < began + seconds:
        time.sleep(step)
        next(batches)
    return first, dataset.stats  # here, for some of them end with the pass


def _as_json(stats: Stats, first: float) -> str:
    rates = {name: getattr(stats, name) for name in ("samples_per_second", "bytes_per_second", "bottleneck", "verdict")}
    return json.dumps({"first_batch": first, **asdict(stats), **rates})
