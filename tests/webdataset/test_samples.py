"""tariterator: samples as documented, bad ones answered as asked, by streams and by byte ranges alike."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfeed_wire.errors import ConfigError, SampleError, ShardError
from shardfeed_wire.tenbin import encode_buffer
from tests.webdataset.tars import numbered_files, tar_bytes
from webdataset.samples import read_sample, tariterator


def samples(files: list[tuple[str, bytes]], **options: Any) -> list[Any]:
    """Iterate a tar of these files."""
    return list(tariterator(io.BytesIO(tar_bytes(files)), **options))


def test_consecutive_files_with_one_key_are_one_sample() -> None:
    files = [("d/a.png", b"1"), ("d/a.seg.PNG", b"2"), ("d/b.png", b"3"), ("d/a.png", b"4")]
    assert samples(files, decoder=False) == [
        {"__key__": "d/a", "png": b"1", "seg.png": b"2"},
        {"__key__": "d/b", "png": b"3"},
        {"__key__": "d/a", "png": b"4"},
    ]


def test_files_without_extension_and_names_that_speak_of_the_shard_are_left_out() -> None:
    files = [("__meta__", b"x"), ("README", b"x"), ("a.x", b"1"), ("__info__/a.x", b"x"), (".b.x", b"x"), ("a.y", b"2")]
    assert samples(files, decoder=False) == [{"__key__": "a", "x": b"1", "y": b"2"}]


def test_only_the_suffixes_asked_for_are_read() -> None:
    files = [("a.x", b"1"), ("a.y", b"2"), ("a.x.z", b"3"), ("b.y", b"4")]
    assert samples(files, decoder=False, suffixes=["x", "x.z"]) == [
        {"__key__": "a", "x": b"1", "x.z": b"3"},
        {"__key__": "b"},
    ]
    assert samples(files, decoder=False, suffixes="x;x.z") == samples(files, decoder=False, suffixes={"x", "x.z"})


def test_keys_may_be_split_in_another_way() -> None:
    def by_folder(path: str) -> tuple[str | None, str | None]:
        folder, _, name = path.rpartition("/")
        return (folder, name) if folder else (None, None)

    files = [("a/left.png", b"1"), ("a/right.png", b"2"), ("other.png", b"3")]
    assert samples(files, keys=by_folder, decoder=False) == [{"__key__": "a", "left.png": b"1", "right.png": b"2"}]


def test_a_field_twice_in_a_sample_is_a_value_error_that_names_key_and_field() -> None:
    with pytest.raises(ValueError, match="sample a, field x: the field is there twice") as caught:
        samples([("a.x", b"1"), ("a.X", b"2")], decoder=False)
    assert isinstance(caught.value, SampleError)
    assert (caught.value.key, caught.value.field) == ("a", "x")


BAD = [("a.cls", b"1"), ("b.json", b"{"), ("b.cls", b"2"), ("c.cls", b"3"), ("c.CLS", b"3"), ("d.cls", b"4")]


def test_with_errors_true_the_first_bad_sample_raises() -> None:
    with pytest.raises(SampleError, match="sample b, field json"):
        samples(BAD)


def test_with_errors_warn_bad_samples_are_left_out_with_a_warning_each() -> None:
    with pytest.warns(UserWarning, match="left out: sample [bc], field") as caught:
        assert [sample["cls"] for sample in samples(BAD, errors="warn")] == [1, 4]
    assert len(caught) == 2


def test_with_errors_false_bad_samples_are_left_out_silently() -> None:
    assert [sample["cls"] for sample in samples(BAD, errors=False)] == [1, 4]


def test_a_broken_tar_raises_warns_or_ends_and_half_a_sample_is_never_given() -> None:
    data = tar_bytes(numbered_files(range(4)))
    cut = data[: len(data.rstrip(b"\0")) - 700]
    with pytest.raises(ShardError, match="truncated"):
        list(tariterator(io.BytesIO(cut), decoder=False))
    with pytest.warns(UserWarning, match="truncated"):
        assert len(list(tariterator(io.BytesIO(cut), decoder=False, errors="warn"))) == 3
    whole = list(tariterator(io.BytesIO(cut), decoder=False, errors=False))
    assert [set(sample) for sample in whole] == [{"__key__", "bin", "cls"}] * 3


def test_bytes_are_decoded_by_their_last_extension_by_default() -> None:
    files = [
        ("a.cls", b" 7\n"),
        ("a.count", b"many"),
        ("a.txt", "ü".encode()),
        ("a.json", b'{"a": [1]}'),
        ("a.ten", encode_buffer([np.arange(3)])),
        ("a.mp", msgspec.msgpack.encode({"b": 2})),
        ("a.left.id", b"3"),
        ("a.unknown", b"raw"),
    ]
    (sample,) = samples(files)
    assert sample.pop("ten")[0].tolist() == [0, 1, 2]
    assert sample == {
        "__key__": "a",
        "cls": 7,
        "count": b"many",
        "txt": "ü",
        "json": {"a": [1]},
        "mp": {"b": 2},
        "left.id": 3,
        "unknown": b"raw",
    }


def test_a_decoder_is_a_dict_by_extension_or_a_function_of_the_sample() -> None:
    files = [("a.x", b"1"), ("a.seg.x", b"2"), ("a.y", b"3")]
    table = {"x": int, "seg.x": lambda data: data.decode() + "!"}
    assert samples(files, decoder=table) == [{"__key__": "a", "x": 1, "seg.x": "2!", "y": b"3"}]
    assert samples(files, decoder=lambda sample: sorted(sample)) == [["__key__", "seg.x", "x", "y"]]


@pytest.mark.parametrize("decoder", ["rgb9", 7])
def test_a_decoder_that_makes_no_sense_is_refused_at_once(decoder: Any) -> None:
    with pytest.raises(ConfigError, match=repr(decoder)):
        tariterator(io.BytesIO(), decoder=decoder)


def test_pickles_stay_bytes_unless_allowed() -> None:
    data = pickle.dumps([1, 2])
    for extension in ("pyd", "pickle"):
        files = [(f"a.{extension}", data)]
        assert samples(files) == [{"__key__": "a", extension: data}]
        assert samples(files, allow_pickle=True) == [{"__key__": "a", extension: [1, 2]}]


@pytest.mark.parametrize(
    ("container", "encode"), [("mp", msgspec.msgpack.encode), ("json", lambda sample: json.dumps(sample).encode())]
)
def test_with_a_container_each_file_is_a_sample(container: str, encode: Any) -> None:
    stored: list[dict[str, Any]] = [{"__key__": "a", "x": 1}, {"__key__": "b", "x": 2}]
    files = [(f"{sample['__key__']}.{container}", encode(sample)) for sample in stored]
    assert samples([("__meta__", b"x"), *files], container=container) == stored


def test_a_sample_in_a_container_that_has_no_key_gets_that_of_its_file() -> None:
    files = [("a/1.mp", msgspec.msgpack.encode({"x": 1})), ("noext", msgspec.msgpack.encode({"x": 2}))]
    assert samples(files, container="mp") == [{"__key__": "a/1", "x": 1}, {"__key__": "noext", "x": 2}]


def test_the_container_ten_gives_tuples_of_arrays() -> None:
    (sample,) = samples([("a.ten", encode_buffer([np.arange(3), np.ones(2)]))], container="ten")
    assert isinstance(sample, tuple)
    assert [array.tolist() for array in sample] == [[0, 1, 2], [1, 1]]


def test_the_container_pyd_needs_permission() -> None:
    files = [("a.pyd", pickle.dumps({"x": 1}))]
    with pytest.raises(ConfigError, match="allow_pickle=True"):
        samples(files, container="pyd")
    assert samples(files, container="pyd", allow_pickle=True) == [{"__key__": "a", "x": 1}]


def test_an_unknown_container_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'zip'.*mp, json, ten, pyd"):
        samples([], container="zip")


def test_a_container_that_does_not_decode_is_a_bad_sample() -> None:
    files = [("a.json", b"{"), ("b.json", b"{}")]
    with pytest.raises(SampleError, match=r"a\.json"):
        samples(files, container="json")
    assert samples(files, container="json", errors=False) == [{"__key__": "b"}]


def test_gzipped_tars_iterate_like_plain_ones() -> None:
    files = numbered_files(range(5))
    packed = tariterator(io.BytesIO(tar_bytes(files, mode="w:gz")), decoder=False)
    assert list(packed) == samples(files, decoder=False)


def test_a_samples_bytes_alone_read_as_the_iterator_reads_them() -> None:
    files = [("a.x", b"1"), ("a.Y.z", b"2" * 600)]
    data = tar_bytes(files)
    part = data[: 512 + 512 + 512 + 1024]
    assert read_sample(part) == samples(files, decoder=False)[0]
    assert read_sample(memoryview(part)) == read_sample(part)
    assert read_sample(part, suffixes=["x"]) == {"__key__": "a", "x": b"1"}
    assert read_sample(part, suffixes=frozenset({"y.z"})) == {"__key__": "a", "y.z": b"2" * 600}


@pytest.mark.parametrize(
    "part", [b"", b"x" * 512, tar_bytes([("a.x", b"1")])[:513], tar_bytes([("README", b"1")])[:1024]]
)
def test_bytes_that_are_no_sample_are_a_shard_error(part: bytes) -> None:
    with pytest.raises(ShardError):
        read_sample(part)


def test_a_field_twice_in_a_samples_bytes_is_a_sample_error() -> None:
    with pytest.raises(SampleError, match="twice"):
        read_sample(tar_bytes([("a.x", b"1"), ("a.x", b"2")])[:2048])


@settings(max_examples=200)
@given(
    cut=st.integers(0, 10**6),
    flip=st.integers(0, 10**6),
    bit=st.integers(0, 7),
    errors=st.sampled_from([True, False, "warn"]),
)
def test_truncated_and_flipped_shards_raise_or_end_and_never_hang(cut: int, flip: int, bit: int, errors: Any) -> None:
    data = bytearray(tar_bytes(numbered_files(range(3), size=40)))
    data = data[: cut % (len(data) + 1)]
    if data:
        data[flip % len(data)] ^= 1 << bit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = list(tariterator(io.BytesIO(bytes(data)), decoder=False, errors=errors))
        except (ShardError, SampleError):
            assert errors is True
            return
    assert sum(len(value) for sample in found for value in sample.values()) <= len(data)
