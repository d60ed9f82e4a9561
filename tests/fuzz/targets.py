"""What is fuzzed: each target takes bytes, and raises nothing but what its documentation names.

Hypothesis calls them in every test run, and atheris, guided by coverage, for longer in ``scripts/test --all``.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
from collections.abc import Callable

import numpy as np

from shardfeed_server.config import ServerConfig, load_config
from shardfeed_server.recipe import Recipe
from shardfeed_wire.curve import load_client_keys, load_server_keys
from shardfeed_wire.endpoint import expand_endpoints, parse_endpoint
from shardfeed_wire.errors import ConfigError, MessageError, SampleError, ShardError, TenbinError
from shardfeed_wire.messages import (
    Batch,
    Cancel,
    Column,
    Failure,
    Get,
    GetManifest,
    Hello,
    Padding,
    Ping,
    SharedMemory,
    StreamInfo,
    Waited,
    Welcome,
    pack,
    unpack,
)
from shardfeed_wire.sctp_fragments import Cutter, Inbox
from shardfeed_wire.tenbin import decode_buffer, decode_list, encode_buffer
from shardfeed_wire.transport import Limits
from tests.fuzz import client_targets, data_targets
from tests.fuzz.parts import in_parts, parts_of
from tests.webdataset.tars import numbered_files, tar_bytes
from webdataset.samples import tariterator

__all__ = ["SEEDS", "TARGETS"]

LIMITS = Limits(frame_bytes=1 << 16, frames=8, message_bytes=1 << 18)


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
    config: ServerConfig | None = None
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        for load in (load_server_keys, load_client_keys):
            with contextlib.suppress(ConfigError):
                load(file.name)
        with contextlib.suppress(ConfigError):
            config = load_config(file.name)
    if config is None:
        return
    for stream in config.streams.values():
        if stream.transform is None:  # which would run code
            with contextlib.suppress(ConfigError):
                stream.shard_paths()
                Recipe(stream)


def endpoints(data: bytes) -> None:
    try:
        for url in expand_endpoints(data[:200].decode("utf-8", "replace"))[:100]:
            parse_endpoint(url)
    except ConfigError:
        return


TOML = b"""
bind = ["tcp://127.0.0.1:0"]
workers = 2
insecure = false
curve = ""
name = "data-0"
code_dir = "code"
send_bytes = 1000
shared_bytes = 0
answer_cache_bytes = 0
queue_requests = 9
sample_timeout = 1.5
cache_bytes = 1000
cache_dir = "cache"
http = "127.0.0.1:9880"
http_public = false
[streams.a]
shards = ["x-{0..3}.tar", "https://a.b/{c,d}.tar"]
fields = { a = "jpg;png", b = { ext = "cls", label_map = { cat = 0 } } }
transforms = ["resize=8x9", "center_crop=8", "random_resized_crop=4", "flip=0.25"]
manifest = "m.ten"
max_pixels = 1000
block_bytes = 1000
exclude_bad = true
partial = true
[streams.b]
shards = "y.tar"
fields = [{ ext = "npy", collate = "pad", pad_value = -1.5, max_len = 7, mask = "m" }, "txt"]
decode = "torchrgb"
[streams.c]
shards = "y.tar"
fields = "image=jpg label=cls"
decode = false
[[outputs]]
url = "zpush://127.0.0.1:7890"
stream = "a"
batch_size = 8
framing = "single"
infos = ["a", "b"]
seed = 7
epochs = 2
"""


def _welcome() -> Welcome:
    column = Column(name="x", kind="ragged", dtype="float32", shape=(None, 2), padding=Padding(value=-1, mask="m"))
    info = StreamInfo(
        name="train",
        data="d",
        recipe="r",
        samples=8,
        blocks=2,
        shards=1,
        columns=(column,),
        facts={"a": "b"},
        readable=b"1",
    )
    shared = SharedMemory(socket="shardfeed-1", token=bytes(16))
    return Welcome(version=1, server="s", nonce="n", workers=1, streams=(info,), shared=shared)


def _batch() -> Batch:
    failure = Failure(row=0, shard="a", key="k", field="x", reason="r", traceback="t")
    return Batch(
        request=1, rows=1, columns=(Column(name="x"),), first=("a", "k"), failures=(failure,), shards=("a.tar",)
    )


def _tars() -> list[bytes]:
    """Tars of every kind: plain, with pax headers, long names, sparse files, and sizes in base 256."""
    plain = numbered_files(range(2), size=90)
    long = [("a" * 150 + "/é.jpg", b"x" * 9), ("a" * 150 + "/é.cls", b"1")]
    header = bytearray(tar_bytes([("a.bin", bytes(9))]))
    header[124:136] = (0x80).to_bytes(1, "big") + (9).to_bytes(11, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header[:512])
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w", format=tarfile.PAX_FORMAT) as archive:
        stored = b"2\n0\n3\n9\n1\n".ljust(512, b"\0") + b"abcd"
        info = tarfile.TarInfo("GNUSparseFile.0/a.bin")
        info.size = len(stored)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "a.bin",
            "GNU.sparse.realsize": "10",
        }
        archive.addfile(info, io.BytesIO(stored))
    return [
        tar_bytes(plain),
        tar_bytes(long, tarfile.GNU_FORMAT),
        tar_bytes(long, tarfile.PAX_FORMAT, time=1.5),
        bytes(header),
        sparse.getvalue(),
    ]


def _seeds() -> dict[str, list[bytes]]:
    """Well-formed input, which fuzzers then spoil."""
    rows = [np.arange(3, dtype=np.uint32), np.arange(3, dtype=np.uint16)]
    get = Get(request=1, stream="train", data="d", recipe="r", seed=0, epoch=0, keys=True, waited=Waited(steps=2))
    packed = [
        [bytes(chunk) for chunk in chunks]
        for chunks in (
            pack(Hello(version=1, job="j")),
            pack(get, rows),
            pack(Cancel(requests=(1, 2))),
            pack(Ping(number=1)),
            pack(GetManifest(request=1, stream="train", data="d")),
            pack(_welcome()),
            pack(_batch()),
        )
    ]
    joined = [in_parts(chunks) for chunks in packed]
    cutter, fragments = Cutter([b"abc", b"", bytes(100)], 64), b""
    while True:
        fragment = b"\0" + b"".join(map(bytes, cutter.fragment(0)))
        fragments += in_parts([fragment])
        if cutter.passed():
            break
    keys = b'public = "' + b"a" * 40 + b'"\nsecret = "' + b"b" * 40 + b'"\nserver = "' + b"c" * 40 + b'"\n'
    return {
        "tenbin_buffer": [encode_buffer(rows, ["a", "b"])],
        "tenbin_chunks": joined,
        "message": [*joined, encode_buffer(rows, ["control", "x"])],
        "control": [chunks[1] for chunks in packed],
        "sctp_fragments": [fragments],
        "tar": [*_tars(), b""],
        "configuration": [TOML, TOML.replace(b"x-", b"~a/x-"), keys],
        "endpoints": [b"tcp://a-{0..3}:7880", b"ipc:///tmp/{a,b}", b"sctp://10.0.0.1,10.1.0.1:1", b"tcp://[::1]:5"],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    **{
        target.__name__: target
        for target in (tenbin_buffer, tenbin_chunks, message, control, sctp_fragments, tar, configuration, endpoints)
    },
    **data_targets.TARGETS,
    **client_targets.TARGETS,
}
SEEDS = _seeds() | data_targets.SEEDS | client_targets.SEEDS
