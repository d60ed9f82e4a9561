"""What is fuzzed: each target takes bytes, and raises nothing but what its documentation names.

Hypothesis calls them in every test run, and atheris, guided by coverage, for longer in ``scripts/test --all``.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable

import numpy as np

from shardfeed_server.config import load_config
from shardfeed_wire.curve import load_client_keys, load_server_keys
from shardfeed_wire.endpoint import expand_endpoints, parse_endpoint
from shardfeed_wire.errors import ConfigError, MessageError, SampleError, ShardError, TenbinError
from shardfeed_wire.messages import Cancel, Get, Hello, Ping, pack, unpack
from shardfeed_wire.sctp_fragments import Cutter, Inbox
from shardfeed_wire.tenbin import decode_buffer, decode_list, encode_buffer
from shardfeed_wire.transport import Limits
from tests.webdataset.tars import numbered_files, tar_bytes
from webdataset.samples import tariterator

__all__ = ["SEEDS", "TARGETS"]

LIMITS = Limits(frame_bytes=1 << 16, frames=8, message_bytes=1 << 18)


def parts_of(data: bytes) -> list[bytes]:
    """Cut bytes into parts: each begins with its length in one byte."""
    parts = []
    while data:
        parts.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    return parts


def tenbin_buffer(data: bytes) -> None:
    try:
        arrays = decode_buffer(data)
    except TenbinError:
        return
    assert sum(array.nbytes for array in arrays) <= len(data)


def tenbin_chunks(data: bytes) -> None:
    try:
        arrays = decode_list(parts_of(data))
    except TenbinError:
        return
    assert sum(array.nbytes for array in arrays) <= len(data)


def message(data: bytes) -> None:
    """One frame, or several."""
    for chunks in ([data], parts_of(data)):
        try:
            unpack(chunks)
        except MessageError:
            continue


def control(data: bytes) -> None:
    """Anything as the control message of a well-formed list of arrays."""
    try:
        unpack([encode_buffer([np.frombuffer(data, np.uint8)], ["control"])])
    except MessageError:
        return


def sctp_fragments(data: bytes) -> None:
    inbox = Inbox(LIMITS, streams=4)
    try:
        for part in parts_of(data):
            for whole in inbox.add(part[0] % 5 if part else 0, memoryview(part[1:])):
                assert sum(len(chunk) for chunk in whole) <= len(data)
    except MessageError:
        return
    assert inbox.partial_bytes <= len(data)


def tar(data: bytes) -> None:
    try:
        for sample in tariterator(io.BytesIO(data), decoder=False):
            assert sum(len(value) for value in sample.values() if isinstance(value, bytes)) <= len(data)
    except (ShardError, SampleError):
        return


def configuration(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        for load in (load_config, load_server_keys, load_client_keys):
            try:
                load(file.name)
            except ConfigError:
                continue


def endpoints(data: bytes) -> None:
    try:
        for url in expand_endpoints(data[:200].decode("utf-8", "replace"))[:100]:
            parse_endpoint(url)
    except ConfigError:
        return


def _seeds() -> dict[str, list[bytes]]:
    """Well-formed input, which fuzzers then spoil."""
    rows = [np.arange(3, dtype=np.uint32), np.arange(3, dtype=np.uint16)]
    get = Get(request=1, stream="train", data="d", recipe="r", seed=0, epoch=0)
    packed = [
        [bytes(chunk) for chunk in chunks]
        for chunks in (
            pack(Hello(version=1, job="j")),
            pack(get, rows),
            pack(Cancel(requests=(1, 2))),
            pack(Ping(number=1)),
        )
    ]
    joined = [b"".join(bytes([len(chunk)]) + chunk for chunk in chunks) for chunks in packed]
    cutter, fragments = Cutter([b"abc", b"", bytes(100)], 64), b""
    while True:
        fragment = b"\0" + b"".join(map(bytes, cutter.fragment(0)))
        fragments += bytes([len(fragment)]) + fragment
        if cutter.passed():
            break
    toml = (
        b'bind = ["tcp://127.0.0.1:0"]\nworkers = 2\n[streams.a]\nshards = "x-{0..3}.tar"\n'
        b'fields = {a = "jpg", b = {ext = "cls"}}\n'
    )
    keys = b'public = "' + b"a" * 40 + b'"\nsecret = "' + b"b" * 40 + b'"\nserver = "' + b"c" * 40 + b'"\n'
    return {
        "tenbin_buffer": [encode_buffer(rows, ["a", "b"])],
        "tenbin_chunks": joined,
        "message": [*joined, encode_buffer(rows, ["control", "x"])],
        "control": [chunks[1] for chunks in packed],
        "sctp_fragments": [fragments],
        "tar": [tar_bytes(numbered_files(range(2), size=90)), b""],
        "configuration": [toml, toml.replace(b"x-", b"~a/x-"), keys],
        "endpoints": [b"tcp://a-{0..3}:7880", b"ipc:///tmp/{a,b}", b"sctp://10.0.0.1,10.1.0.1:1", b"tcp://[::1]:5"],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (tenbin_buffer, tenbin_chunks, message, control, sctp_fragments, tar, configuration, endpoints)
}
SEEDS = _seeds()
