"""Control messages: what goes in comes out, newer peers are understood, and what is hostile is a MessageError."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardfeed_wire import messages, tenbin
from shardfeed_wire.errors import MessageError
from shardfeed_wire.messages import (
    MAX_CONTROL_BYTES,
    Batch,
    Cancel,
    Column,
    Failure,
    Get,
    GetManifest,
    Hello,
    Manifest,
    Message,
    Padding,
    Ping,
    Pong,
    Refused,
    Seconds,
    StreamInfo,
    Welcome,
    control_bytes,
    pack,
    unpack,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, (1 << 64) - 1)
counts = st.integers(0, 1 << 40)
seconds = st.floats(0, 1e6)
kinds: Any = st.sampled_from(["dense", "ragged", "text", "bytes", "json"])
shapes = st.none() | st.lists(st.none() | st.integers(0, 1 << 31), max_size=4).map(tuple)
paddings = st.builds(Padding, value=st.floats(-1e6, 1e6), length=st.none() | counts, mask=st.none() | text)
columns = st.builds(
    Column, name=text, kind=kinds, dtype=text, shape=shapes, padding=st.none() | paddings, tensor=counts
)
several_columns = st.lists(columns, max_size=3).map(tuple)
stream_infos = st.builds(
    StreamInfo,
    name=text,
    data=text,
    recipe=text,
    samples=counts,
    blocks=counts,
    shards=counts,
    columns=several_columns,
    unnamed=st.booleans(),
    facts=st.dictionaries(text, text, max_size=3),
    readable=st.none() | st.binary(max_size=9),
)
failures = st.builds(Failure, row=counts, shard=text, key=text, field=st.none() | text, reason=text, traceback=text)
reasons = st.sampled_from(["busy", "unknown_stream", "a reason of a newer server"])
any_message: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, version=counts, job=text, rank=counts, software=text),
    st.builds(
        Welcome,
        version=counts,
        server=text,
        nonce=text,
        workers=counts,
        streams=st.lists(stream_infos, max_size=2).map(tuple),
        software=text,
    ),
    st.builds(GetManifest, request=numbers, stream=text, data=text),
    st.builds(Manifest, request=numbers, data=text, samples=counts),
    st.builds(
        Get, request=numbers, stream=text, data=text, recipe=text, seed=numbers, epoch=numbers, keys=st.booleans()
    ),
    st.builds(
        Batch,
        request=numbers,
        rows=counts,
        columns=several_columns,
        first=st.tuples(text, text),
        failures=st.lists(failures, max_size=2).map(tuple),
        shards=st.lists(text, max_size=3).map(tuple),
        seconds=st.builds(Seconds, waiting=seconds, reading=seconds, decoding=seconds, collating=seconds),
    ),
    st.builds(Refused, request=numbers, reason=reasons, message=text),
    st.builds(Cancel, requests=st.lists(numbers, max_size=4).map(tuple)),
    st.builds(Ping, number=numbers),
    st.builds(Pong, number=numbers, nonce=text),
)
tensors = st.lists(hnp.arrays(st.sampled_from(["<u4", "<u2", "|u1", "<f4"]), hnp.array_shapes(max_dims=3)), max_size=3)


def as_map(message: Message) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.msgpack.decode(control_bytes(message))
    return decoded


def message_of(control: bytes) -> Message:
    """Send a control message of these bytes through unpack."""
    return unpack(tenbin.encode_list([np.frombuffer(control, np.uint8)], ["control"]))[0]


def encoded(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


@given(any_message, tensors)
def test_what_is_packed_is_unpacked_in_both_framings(message: Message, arrays: list[np.ndarray]) -> None:
    chunks = pack(message, arrays)
    for received in ([bytes(chunk) for chunk in chunks], [tenbin.encode_chunks(chunks)]):
        found, found_arrays = unpack(received)
        assert found == message
        assert [(a.dtype, a.shape, a.tobytes()) for a in found_arrays] == [
            (a.dtype, a.shape, a.tobytes()) for a in arrays
        ]


@given(any_message)
def test_array_0_is_named_control_and_holds_a_map_with_the_type(message: Message) -> None:
    (control, *_), names = tenbin.decode_list(pack(message, [np.zeros(3, np.uint8)]), infos=True)
    assert names == ["control", ""]
    assert msgspec.msgpack.decode(control.tobytes())["type"] == type(message).__name__.lower()


@given(any_message, st.dictionaries(text.map("x-".__add__), st.none() | numbers | text | st.lists(text), max_size=3))
def test_fields_that_a_newer_peer_adds_are_ignored(message: Message, more: dict[str, Any]) -> None:
    assert message_of(encoded(**{**as_map(message), **more})) == message


def test_fields_that_have_a_default_may_be_left_out() -> None:
    assert message_of(encoded(type="hello", version=1, job="j")) == Hello(version=1, job="j")
    short = encoded(type="batch", request=1, rows=2, columns=[{"name": "a"}], first=["s", "k"])
    assert message_of(short) == Batch(request=1, rows=2, columns=(Column(name="a"),), first=("s", "k"))


@pytest.mark.parametrize(
    ("control", "says"),
    [
        (b"", None),
        (b"\xc1", None),
        (encoded(), "type"),
        (encoded(type="unheard-of"), "unheard-of"),
        (encoded(type=7), None),
        (msgspec.msgpack.encode([1, 2]), "object"),
        (encoded(type="ping"), "number"),
        (encoded(type="ping", number="1"), "number"),
        (encoded(type="ping", number=None), "number"),
        (encoded(type="ping", number=1) + b"\0", None),
        (encoded(type="ping", number=1)[:-1], None),
        (encoded(type="batch", request=1, rows=1, columns=[{"name": "a", "kind": "pickle"}], first=["", ""]), "pickle"),
        (b"\x82\xa4type\xa4ping\xa6number\xd9\x04\xff\xfe\xfd\xfc", None),  # text that is not UTF-8
        (b"\x82\xa4type\xa5hello\xa3job\xd9\x04\xff\xfe\xfd\xfc", None),
        (b"\x81\xa4type\xdb\xff\xff\xff\xff", None),  # a text of 4 GiB
        (b"\x82\xa4type\xa6cancel\xa8requests\xdd\xff\xff\xff\xff", None),  # 4 billion numbers
        (b"\x82\xa4type\xa4ping\xa1x" + b"\x91" * 100_000, None),  # a list in a list in a list ...
        (b"\x82\xa4type\xa4ping\xa1x" + b"\x81\xa1y" * 100_000, None),
        (b"\xdf\xff\xff\xff\xff", None),
    ],
    ids=range(19),
)
def test_a_hostile_control_message_is_a_message_error_and_nothing_else(control: bytes, says: str | None) -> None:
    with pytest.raises(MessageError, match=says):
        message_of(control)


@given(st.binary(max_size=200))
@example(b"\x91" * 200)
def test_random_bytes_are_a_message_error_or_a_message(control: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(message_of(control), Message)


@given(any_message, st.data())
def test_a_damaged_message_is_a_message_error_or_another_message(message: Message, data: st.DataObject) -> None:
    control = bytearray(control_bytes(message))
    for _ in range(data.draw(st.integers(1, 4))):
        control[data.draw(st.integers(0, len(control) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MessageError):
        assert isinstance(message_of(bytes(control)), Message)


@given(st.lists(st.binary(max_size=80), max_size=5))
@example([])
@example([b""])
@example([b"", b""])
@example([b"~TenBin~"])
def test_chunks_that_are_no_message_are_a_message_error(chunks: list[bytes]) -> None:
    with pytest.raises(MessageError, match=r"^not a shardfeed message: "):
        unpack(chunks)


@pytest.mark.parametrize(
    "first",
    [
        np.zeros(4, np.int8),
        np.zeros((2, 2), np.uint8),
        np.zeros((), np.uint8),
        np.zeros(MAX_CONTROL_BYTES + 1, np.uint8),
    ],
    ids=["signed", "two dims", "no dims", "too large"],
)
def test_an_array_0_that_is_no_control_message_is_a_message_error(first: np.ndarray) -> None:
    with pytest.raises(MessageError, match="first array is not a control message"):
        unpack(tenbin.encode_list([first]))


def test_the_list_of_messages_is_complete() -> None:
    named = {name for name in messages.__all__ if isinstance(getattr(messages, name), type)}
    parts = {"Column", "Failure", "Padding", "Seconds", "SharedMemory", "StreamInfo", "Waited"}
    assert {member.__name__ for member in Message.__args__} == named - parts  # type: ignore[attr-defined]
