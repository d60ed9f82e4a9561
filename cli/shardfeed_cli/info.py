"""`shardfeed info`: what a server is and serves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from shardfeed_wire.errors import ShardfeedError

if TYPE_CHECKING:
    from shardfeed_wire.messages import Welcome

__all__ = ["info"]


def info(
    url: Annotated[
        str, typer.Argument(help="The server; braces name several: 'tcp://data-{0..3}:7880'; so does ray://NAME.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON a server.")] = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for each server.")] = 10.0,
    curve: Annotated[
        str | None, typer.Option(help="This client's key file, of `shardfeed keygen`, for servers with --curve.")
    ] = None,
) -> None:
    """Say what servers are: version, workers, streams, columns, fingerprints and the recipe's facts."""
    from shardfeed.addresses import endpoints_now
    from shardfeed.inquiry import ask_server

    failed: list[ShardfeedError] = []
    for endpoint in endpoints_now(url):
        try:
            welcome = ask_server(endpoint, timeout=timeout, curve=curve)
        except ShardfeedError as error:
            failed.append(error)
            continue
        print(_as_json(endpoint, welcome) if as_json else "\n".join(_lines(endpoint, welcome)), flush=True)
    for one in failed[:-1]:
        print(f"error: {one}", file=sys.stderr)
    if failed:
        raise failed[-1]


def _as_json(endpoint: str, welcome: Welcome) -> str:
    import msgspec

    return json.dumps({"endpoint": endpoint, **msgspec.to_builtins(welcome)})


def _lines(endpoint: str, welcome: Welcome) -> Iterator[str]:
    from shardfeed_cli.announcement import describe_stream

    yield f"server: {welcome.server} at {endpoint}"
    yield f"version: {welcome.software}, protocol {welcome.version}"
    yield f"workers: {welcome.workers}"
    for stream in welcome.streams:
        yield from describe_stream(stream)
        if stream.readable is not None:
            count = sum(byte.bit_count() for byte in stream.readable)
            yield f"  reads {count:,} of the {stream.shards:,} shards"
        yield f"  fingerprints: data {stream.data}, recipe {stream.recipe}"
        for name, fact in stream.facts.items():
            yield f"  recipe {name}: {fact}"
