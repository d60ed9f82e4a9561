"""`docs/protocol.md` says what is so: its vectors are those computed, its client reads a batch from a server.

``python -m tests.client.test_plan_in_protocol`` writes the vectors into the page, below their markers.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import zmq

from shardfeed.plan import Plan, default_lanes
from shardfeed_wire import messages
from shardfeed_wire.messages import Batch, Column, Get, Hello, Message, pack
from shardfeed_wire.tenbin import encode_chunks
from tests.vectors import reference
from tests.vectors.write import PATH
from webdataset import tenbin

ROOT = Path(__file__).parents[2]
PROTOCOL = ROOT / "docs" / "protocol.md"
SERVE = """
import sys
from shardfeed_server.config import ServerConfig, StreamConfig
from shardfeed_server.serve import Observer, serve

def ready(serving):
    print(serving.endpoints[0], flush=True)

if __name__ == "__main__":
    stream = StreamConfig(shards=tuple(sys.argv[1:]), fields="jpg cls")
    config = ServerConfig(streams={"default": stream}, bind=("tcp://127.0.0.1:0",), workers=1)
    serve(config, Observer(ready=ready), end_with=0)
"""


# ------------------------------------------------------------------------------------ quoted vectors


def quotes() -> dict[str, str]:
    """Return what stands below each marker in the page."""
    vectors = json.loads(PATH.read_text())
    x = {"name": "x", "dtype": "i2", "shape": [2, 3], "values": [1, -2, 3, 4, 5, -6]}
    tenbin_case = next(case for case in vectors["tenbin"] if x in case["arrays"])
    single = reference.framed([bytes.fromhex(chunk) for chunk in tenbin_case["multipart"][:2]]).hex()
    get = Get(request=1, stream="train", data="d1", recipe="r1", seed=7, epoch=2)
    asked = pack(get, [np.array([42, 42, 7], np.uint32), np.array([5, 17, 9], np.uint16)])
    batch = Batch(
        request=1,
        rows=3,
        columns=(
            Column(name="image", shape=(224, 224, 3), tensor=1),
            Column(name="label", dtype="int64", shape=(), tensor=2),
        ),
        first=("train-000003.tar", "n0153_22"),
    )
    texts = {
        "tenbin": "\n".join([*tenbin_case["multipart"][:2], "", *wrapped(single)]),
        "philox": lines(vectors["philox"]),
        "order": "\n\n".join(map(order_lines, vectors["order"][:8])),
        "steps": lines(vectors["steps"]),
        "keyhash": lines(vectors["keyhash"]),
        "digest": lines(vectors["digest"]),
        "get": pretty(get),
        "get frames": "\n".join(line for chunk in asked for line in wrapped(bytes(chunk).hex())),
        "batch": pretty(batch),
    }
    return {name: f"<!-- vector: {name} -->\n```text\n{text}\n```\n" for name, text in texts.items()}


def lines(cases: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(case, ensure_ascii=False) for case in cases)


def order_lines(case: dict[str, Any]) -> str:
    inputs = {name: value for name, value in case.items() if name != "samples"}
    samples = " ".join(f"({block}, {sample})" for block, sample in case["samples"])
    return f"{json.dumps(inputs)}\n{samples}"


def wrapped(text: str) -> list[str]:
    return [text[at : at + 128] for at in range(0, len(text), 128)]


def pretty(message: Message) -> str:
    return json.dumps(msgspec.to_builtins(message), indent=2)


def test_the_vectors_in_the_page_are_those_computed() -> None:
    page = PROTOCOL.read_text()
    found = set(re.findall("<!-- vector: (.*) -->", page))
    assert found == set(quotes())
    for name, quote in quotes().items():
        assert quote in page, f"the vector {name!r} of {PROTOCOL.name} is another; see this file's first lines"


def test_every_message_field_reason_and_limit_is_in_the_page() -> None:
    page = PROTOCOL.read_text()
    for message in (
        *get_args(Message),
        messages.StreamInfo,
        Column,
        messages.Failure,
        messages.Seconds,
        messages.Padding,
    ):
        for field in msgspec.structs.fields(message):
            assert f"`{field.encode_name}`" in page, f"{message.__name__}.{field.name}"
    for kind in get_args(Message):
        assert f'`"{kind.__name__.lower()}"`' in page
    for word in (*get_args(messages.Reason), *get_args(messages.Kind)):
        assert f"`{word}`" in page
    assert f"version: **{messages.PROTOCOL_VERSION}**" in page
    assert f"{messages.MAX_REQUEST_ROWS:,} rows" in page
    assert f"at most {messages.MAX_CONTROL_BYTES >> 20} MiB" in page


# ---------------------------------------------------------------------------------- a real server


@pytest.fixture
def served(tmp_path: Path, thumbnails: Any, shards: Callable[..., list[Path]]) -> Iterator[str]:
    """The endpoint of a server of 40 photographs in 2 shards, in a process of its own."""
    script = tmp_path / "serve_photographs.py"
    script.write_text(SERVE)
    command = [sys.executable, str(script), *map(str, shards(thumbnails[:40], count=2))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            endpoint = server.stdout.readline().strip()
            assert endpoint, "the server did not start"
            yield endpoint
        finally:
            server.terminate()


@pytest.fixture
def dealer(served: str) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.rcvtimeo = 0, 20_000
        socket.connect(served)
        yield socket


def expected_keys(sizes: list[int], count: int) -> list[str]:
    plan = Plan(np.array(sizes), seed=0, epoch=0, shuffle=True, lanes=default_lanes(len(sizes), shuffle=True))
    first = np.cumsum([0, *sizes])
    block, index = plan.locate(np.arange(count))
    return [f"{number:06d}" for number in (first[block] + index).tolist()]


def test_the_client_of_the_page_reads_the_first_batch(served: str, tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PROTOCOL.read_text(), re.DOTALL)
    assert len([line for line in source.splitlines() if line]) <= 45
    client = tmp_path / "client.py"
    client.write_text(source)
    command = [sys.executable, str(client), served, "default"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert ended.returncode == 0, ended.stderr
    image, label, keys = ended.stdout.splitlines()
    assert image.endswith("uint8 (8, 32, 32, 3)")
    assert label.endswith("int64 (8,)")
    assert keys.startswith("".join(expected_keys([20, 20], 8)))


@pytest.mark.parametrize("framing", ["multipart", "single"])
def test_the_documented_functions_read_a_batch_in_the_framing_of_the_request(
    dealer: zmq.Socket[bytes], thumbnails: Any, framing: str
) -> None:
    receive = tenbin.zrecv_multipart if framing == "multipart" else tenbin.zrecv_single

    def ask(message: Message, *tensors: np.ndarray) -> tuple[dict[str, Any], list[np.ndarray]]:
        chunks = pack(message, tensors)
        dealer.send_multipart(chunks if framing == "multipart" else [encode_chunks(chunks)])
        (control, *answered), names = receive(dealer, infos=True)
        assert names == ["control", *[""] * len(answered)]
        return msgspec.msgpack.decode(control.tobytes()), answered

    welcome, _ = ask(Hello(version=1, job="test"))
    stream = welcome["streams"][0]
    get = Get(request=5, stream="default", data=stream["data"], recipe=stream["recipe"], seed=0, epoch=0, keys=True)
    blocks = np.array([0, 1, 0], np.uint32)
    batch, (hashes, shard, keys, offsets, *columns) = ask(get, blocks, np.array([3, 0, 7], np.uint16))
    assert (batch["type"], batch["request"], batch["rows"]) == ("batch", 5, 3)
    found = [keys.tobytes()[offsets[row] : offsets[row + 1]].decode() for row in range(3)]
    assert found == ["000003", "000020", "000007"]
    assert [batch["shards"][number] for number in shard] == [f"train-{n:06d}.tar" for n in (0, 1, 0)]
    for row, key in enumerate(found):
        name = batch["shards"][shard[row]].encode()
        assert hashes[row].tobytes() == reference.keyhash(name, key.encode())
    images, labels = (columns[column["tensor"] - 4] for column in batch["columns"])
    assert images.shape == (3, 32, 32, 3)
    assert labels.tolist() == [thumbnails[n].label for n in (3, 20, 7)]


def test_what_makes_no_sense_is_not_answered_and_disturbs_nobody(dealer: zmq.Socket[bytes]) -> None:
    bad_text = b"\x82\xa4type\xa5hello\xa3job\xd9\x04\xff\xfe\xfd\xfc"
    for control in (b"", b"\xc1", bad_text, msgspec.msgpack.encode({"type": "unheard-of"})):
        dealer.send_multipart(tenbin.encode_list([np.frombuffer(control, np.uint8)], ["control"]))
    dealer.send_multipart([b"~TenBin~", b"", b"x"])
    dealer.send_multipart(pack(messages.Ping(number=9)))
    control, *_ = tenbin.zrecv_multipart(dealer)
    answer = msgspec.msgpack.decode(control.tobytes())
    assert (answer["type"], answer["number"]) == ("pong", 9)


if __name__ == "__main__":
    page = PROTOCOL.read_text()
    for name, quote in quotes().items():
        page = re.sub(rf"<!-- vector: {name} -->\n(```text\n.*?```\n)?", lambda _, q=quote: q, page, flags=re.DOTALL)
    PROTOCOL.write_text(page)
