"""What servers and streams are, in lines for people and for grep."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from shardfeed_wire.endpoint import parse_endpoint

if TYPE_CHECKING:
    from shardfeed_server.serve import Serving
    from shardfeed_wire.messages import Column, StreamInfo

__all__ = ["announce", "describe_stream"]

_TRANSPORTS = {
    "tcp": "ZeroMQ over TCP, framing multipart or single, as the client asks",
    "ipc": "ZeroMQ over a Unix socket, framing multipart or single, as the client asks",
    "sctp": "SCTP",
}
_EVERY_ADDRESS = ("0.0.0.0", "::", "*")


def announce(serving: Serving, given: dict[str, int]) -> Iterator[str]:
    """Yield the lines that say what a server serves; ``given`` counts the shards that each stream was given."""
    for stream in serving.streams:
        yield from describe_stream(stream)
        left_out = given[stream.name] - stream.shards
        if left_out:
            yield f"  left out as bad: {left_out:,} of {given[stream.name]:,} shards"
    yield f"server: {serving.name}, workers: {serving.workers}"
    if any(stream.facts.get("transforms", "").startswith("random_resized_crop") for stream in serving.streams):
        yield f"random_resized_crop: {_how_jpegs_are_cut()}"
    for url in serving.endpoints:
        yield f"listening on {url}: {_TRANSPORTS.get(parse_endpoint(url).scheme, parse_endpoint(url).scheme)}"
    if serving.http is not None:
        yield f"health and figures: {serving.http}/healthz, /readyz and /metrics"
    for stream in serving.streams:
        yield f"read {stream.name} with: {_line_of_python(serving.endpoints[0], stream.name)}"


def _how_jpegs_are_cut() -> str:
    from webdataset.images import decodes_parts

    if decodes_parts():
        return "only its part of a JPEG is decoded"
    return "whole JPEGs are decoded; shardfeed-jpegcrop would decode only its part, sooner"


def describe_stream(stream: StreamInfo) -> Iterator[str]:
    """Yield the lines that say what a stream is: its size, and each column's dtype and one row's shape."""
    batches = "tuples" if stream.unnamed else "dicts"
    yield f"stream {stream.name}: {stream.samples:,} samples in {stream.shards:,} shards, batches are {batches}"
    if stream.readable is not None:
        here = sum(byte.bit_count() for byte in stream.readable)
        yield f"  reads {here:,} of these shards; other servers must read the rest"
    for column in stream.columns:
        yield f"  column {column.name}: {_describe_column(column)}"


def _describe_column(column: Column) -> str:
    if column.kind in ("text", "bytes", "json"):
        return column.kind
    shape = "shape varies" if column.shape is None else _written(column.shape)
    padding = column.padding
    if padding is None:
        return f"{'ragged ' if column.kind == 'ragged' else ''}{column.dtype} {shape}"
    length = "" if padding.length is None else f" to {padding.length}"
    mask = "" if padding.mask is None else f", mask {padding.mask}"
    return f"{column.dtype} {shape}, padded{length} with {padding.value:g}{mask}"


def _written(shape: tuple[int | None, ...]) -> str:
    if not shape:
        return "scalar"
    return f"({', '.join('?' if size is None else str(size) for size in shape)}{',' if len(shape) == 1 else ''})"


def _line_of_python(url: str, stream: str) -> str:
    endpoint = parse_endpoint(url)
    if endpoint.host in _EVERY_ADDRESS:
        endpoint = replace(endpoint, host=socket.gethostname())
    named = "" if stream == "default" else f'stream="{stream}", '
    return f'RemoteDataset("{endpoint}", {named}batch_size=64)'
