"""What is fuzzed of the client: whatever a server says, and whatever a trainer's checkpoint holds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardfeed.agreement import Agreement
from shardfeed.answers import parse_answer
from shardfeed.bookmark import Order, read_bookmark
from shardfeed.collate import Part, assemble
from shardfeed.manifest_cache import parse_manifest
from shardfeed.plan import Cut, Plan
from shardfeed.position import Position
from shardfeed_wire import messages
from shardfeed_wire.errors import ConfigError, MessageError, RefusedError, SampleError, ShapeError
from shardfeed_wire.messages import Batch, Column, Failure, Message, Padding, Refused, StreamInfo, Welcome, pack, unpack
from shardfeed_wire.sharing import Dropped, Lent, Release, decode_from_borrower, decode_from_lender, encode
from tests.fuzz.parts import in_parts, parts_of

__all__ = ["SEEDS", "TARGETS"]

ROWS = 3
INFO = StreamInfo(name="train", data="d0", recipe="r", samples=8, blocks=2, shards=1, columns=())
ORDER = Order(data="d0", recipe="r", seed=0, shuffle=True, lanes=2)
CUT = Cut(samples=8, batch_size=2, world_size=2, tail="pad")


def said_by_a_server(data: bytes) -> None:
    """Two messages, each its control and tensors; what comes of answers is put together to one batch."""
    answers = []
    for half in parts_of(data)[:2]:
        with contextlib.suppress(MessageError, RefusedError):
            message, tensors = unpack(parts_of(half))
            match message:
                case Batch():
                    answers.append(parse_answer(message, tensors, rows=ROWS, keys=bool(message.shards)))
                case messages.Manifest():
                    parse_manifest(tensors, INFO)
                case Welcome():
                    Agreement("train").join("tcp://a:1", message)
    for chosen in (answers, answers[:1]):
        parts = [
            Part(answer, np.arange(number, ROWS * len(chosen), len(chosen))) for number, answer in enumerate(chosen)
        ]
        if not parts:
            continue
        with contextlib.suppress(SampleError, ShapeError, MessageError):
            made, good = assemble(parts, ROWS * len(chosen), on_error="mask", pin_memory=False)
            assert all(len(column) == len(good) for column in made.values())


def bookmark(data: bytes) -> None:
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        return
    position = Position()
    try:
        found = read_bookmark(state)
        found.check(seed=ORDER.seed, shuffle=ORDER.shuffle, lanes=None)
        position.load(found)
        lanes = position.lanes
        assert lanes is not None
        epoch, consumed = position.begin(ORDER, CUT, samples=CUT.samples, allow_recipe_change=False)
        plan = Plan(np.array([4, 4]), seed=ORDER.seed, epoch=epoch, shuffle=ORDER.shuffle, lanes=lanes)
    except (ConfigError, RefusedError):
        return
    for rows in CUT.walk(consumed):
        plan.locate(rows.positions)
    json.dumps(position.bookmark(ORDER, CUT).state())


def shared_memory(data: bytes) -> None:
    for decode in (decode_from_lender, decode_from_borrower):
        with contextlib.suppress(MessageError):
            decode(data)


def _packed(message: Message, *tensors: NDArray[Any]) -> bytes:
    return in_parts([bytes(chunk) for chunk in pack(message, tensors)])


def _batches() -> list[bytes]:
    hashes, ends = np.zeros((ROWS, 16), np.uint8), np.arange(ROWS + 1)
    shapes = np.ones((ROWS, 1), np.int64)
    failure = Failure(row=1, shard="a.tar", key="k", field="x", reason="r", traceback="t")

    def batch(column: Column, *tensors: NDArray[Any], keys: bool = False, failures: tuple[Failure, ...] = ()) -> bytes:
        named = [np.zeros(ROWS, np.uint32), np.frombuffer(b"abc", np.uint8), ends] if keys else []
        said = Batch(
            request=1,
            rows=ROWS,
            columns=(column,),
            first=("a.tar", "k"),
            failures=failures,
            shards=("a.tar",) if keys else (),
        )
        return _packed(said, hashes, *named, *tensors)

    padding = Padding(value=-1.5, length=2, mask="m")
    ragged = [np.zeros(ROWS, np.float32), ends, shapes]
    return [
        batch(Column(name="x", tensor=1), np.zeros((ROWS, 2), np.uint8)),
        batch(Column(name="x", tensor=4), np.zeros((ROWS, 2), np.uint8), keys=True),
        batch(Column(name="x", dtype="bfloat16", tensor=1), np.zeros((ROWS, 2), np.uint16), failures=(failure,)),
        batch(Column(name="x", kind="ragged", dtype="float32", tensor=1), *ragged, failures=(failure,)),
        batch(Column(name="x", kind="ragged", dtype="float32", tensor=1, padding=padding), *ragged),
        batch(Column(name="x", kind="text", tensor=1), np.frombuffer(b"abc", np.uint8), ends),
        batch(Column(name="x", kind="json", tensor=1), np.frombuffer(b"123", np.uint8), ends, failures=(failure,)),
    ]


def _said() -> list[bytes]:
    manifest = [
        np.array([4, 4], np.uint16),
        np.array([2], np.uint32),
        np.frombuffer(b"a.tar", np.uint8),
        np.array([0, 5], np.int64),
    ]
    others = [
        _packed(Welcome(version=1, server="s", nonce="n", workers=1, streams=(INFO,))),
        _packed(messages.Manifest(request=1, data="d0", samples=8), *manifest),
        _packed(Refused(request=1, reason="busy", message="m")),
    ]
    batches = _batches()
    return [*(in_parts([one, one]) for one in batches), *(in_parts([one]) for one in others), in_parts(batches[:2])]


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (said_by_a_server, bookmark, shared_memory)
}
SEEDS = {
    "said_by_a_server": _said(),
    "bookmark": [
        json.dumps(
            dict(data="d0", recipe="r", seed=0, epoch=1, shuffle=True, lanes=2, consumed=4, version=1, **more)
        ).encode()
        for more in ({}, {"workers": 2, "worker": 1})
    ],
    "shared_memory": [
        encode(Lent(slot=1, start=0, end=9, size=9)),
        encode(Dropped(slot=1)),
        encode(Release(slot=1)),
    ],
}
