"""Answers made all rows at once are those made row by row, and one odd sample is still said by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardfeed_server.decoding import Simple
from shardfeed_server.reading import SampleReader
from shardfeed_server.wholesale import Wholesale
from shardfeed_wire.errors import ShapeError, ShardError
from tests.photographs import write_shards
from tests.server.streams import serve
from webdataset.indexing import index_shards
from webdataset.shards import ShardReader

FIELDS = "text=txt number=cls raw=bin"
ONE_BY_ONE = {10**6: "no row of the request"}
"""Bad rows, with which an answer is made row by row."""

Samples = list[tuple[str, dict[str, bytes]]]


def _samples(count: int, size: int = 0) -> Samples:
    texts = ["", "plain", "grüß", "a" * 600]
    return [
        (f"a.b/k{n}", {"txt": texts[n % 4].encode(), "bin": b"\0" * (n % 3) + bytes(size), "CLS": b" %d\n" % (n - 5)})
        for n in range(count)
    ]


def _wholesale(folder: Path, samples: Samples) -> tuple[Wholesale, SampleReader, ShardReader]:
    manifest = index_shards(write_shards(folder, samples, 2))
    shards = ShardReader(manifest)
    reader = SampleReader(manifest, shards, frozenset(("txt", "cls", "bin")))
    return Wholesale(reader, [Simple("cls", "number"), Simple("txt", "text")]), reader, shards


@pytest.mark.parametrize("keys", [False, True])
def test_an_answer_made_at_once_is_the_one_made_row_by_row(tmp_path: Path, keys: bool) -> None:
    served = serve(tmp_path, _samples(40), shards=2, fields=FIELDS)
    numbers = [39, 0, 7, 7, *range(20)]
    at_once = served.ask(numbers, keys=keys)
    assert served.touched == list(range(24))
    row_by_row = served.ask(numbers, keys=keys, bad_rows=ONE_BY_ONE)
    assert at_once.batch.columns == row_by_row.batch.columns
    assert at_once.batch.first == row_by_row.batch.first == ("train-000001.tar", "a.b/k39")
    assert at_once.batch.shards == row_by_row.batch.shards
    for one, other in zip(at_once.tensors, row_by_row.tensors, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


STRUCTURES = (
    b' {"a": 1}',
    b'{"text": "gr\xc3\xbc\xc3\x9f", "list": [1, 2.50, -0.0, true, null], "deep": {"b": ["\\u0041\\/"]}}',
    b"[18446744073709551615, 123456789012345678901234567890, 5e-324]",
    b'{"a":1,"a":2}',
    b"[NaN, -Infinity, 1e400]",
    b"\xef\xbb\xbf[1]",
    b"[1] \n",
    b"[]",
    '{"wide": 1}'.encode("utf-16"),
)
BROKEN = (b"{", b"", b'["\\ud800"]', b'["\x01"]', b"[01]", b"[" * 5000, b'["\xff"]')


@pytest.mark.parametrize("odd", STRUCTURES)
def test_json_written_at_once_is_that_written_row_by_row(tmp_path: Path, odd: bytes) -> None:
    samples = [(f"k{n}", {"json": b'{"n": %d}' % n, "cls": b"%d" % n}) for n in range(3)]
    served = serve(tmp_path, [*samples, ("odd", {"json": odd, "cls": b"3"})], fields="json cls")
    at_once = served.ask(range(4))
    assert (at_once.batch.failures, at_once["json"][:3]) == ((), [b'{"n":0}', b'{"n":1}', b'{"n":2}'])
    row_by_row = served.ask(range(4), bad_rows=ONE_BY_ONE)
    assert at_once.batch.columns == row_by_row.batch.columns
    for one, other in zip(at_once.tensors[1:], row_by_row.tensors[1:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("broken", BROKEN, ids=repr)
def test_json_that_is_none_is_a_failure_among_good_rows(tmp_path: Path, broken: bytes) -> None:
    samples = [("a", {"json": b"[1]"}), ("bad", {"json": broken}), ("c", {"json": b"[3]"})]
    asked = serve(tmp_path, samples, fields="json").ask(range(3))
    (failure,) = asked.batch.failures
    assert (failure.row, failure.key, failure.field) == (1, "bad", "json")
    assert asked["json"] == [b"[1]", b"", b"[3]"]


def test_samples_of_more_than_a_window_are_read_in_runs(tmp_path: Path) -> None:
    samples = _samples(300, size=3000)
    wholesale, reader, shards = _wholesale(tmp_path, samples)
    with shards:
        touched: list[int] = []
        found = wholesale.read(reader.first(300), touched.append)
        assert found is not None
        assert touched == list(range(300))
        keys, columns = found
        assert keys == [key for key, _ in samples]
        assert columns == [[fields[name] for _, fields in samples] for name in ("CLS", "txt")]
        numbers, texts = wholesale.decode(columns) or (None, None)
        assert numbers is not None
        assert (numbers.kind, numbers.rows.tolist()) == ("dense", [n - 5 for n in range(300)])
        assert texts == ("text", columns[1])


def test_large_samples_are_left_to_the_other_way(tmp_path: Path) -> None:
    samples = [*_samples(30), ("large", {"txt": b"", "bin": bytes(300_000), "cls": b"1"})]
    samples += [("larger", {"txt": b"", "bin": bytes(1_000_000), "cls": b"1"})]
    wholesale, reader, shards = _wholesale(tmp_path, samples)
    with shards:
        assert wholesale.read(reader.first(30), lambda row: None) is not None
        assert wholesale.read(reader.first(31), lambda row: None) is None  # does not fit the window
        assert wholesale.read(reader.first(32), lambda row: None) is None  # large on average


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"txt": b"\xff", "cls": b"1"}, "text", "UnicodeDecodeError"),
        ({"txt": b"", "cls": b"9" * 30}, "number", "does not fit 64 bits"),
        ({"txt": b""}, "number", "the field is absent"),
    ],
    ids=["no UTF-8", "a large number", "absent"],
)
def test_one_bad_sample_is_a_failure_among_good_ones(
    tmp_path: Path, fields: dict[str, bytes], field: str, reason: str
) -> None:
    samples = [(f"k{n}", {"txt": b"good", "cls": b"%d" % n}) for n in range(4)]
    served = serve(tmp_path, [*samples[:2], ("bad", fields), *samples[2:]], fields="text=txt number=cls")
    asked = served.ask(range(5))
    (failure,) = asked.batch.failures
    assert (failure.row, failure.key, failure.field) == (2, "bad", field)
    assert reason in failure.reason
    assert asked["number"].tolist() == [0, 1, 0, 2, 3]
    assert asked["text"] == [b"good", b"good", b"", b"good", b"good"]


def test_a_number_that_is_none_does_not_fit_its_column(tmp_path: Path) -> None:
    served = serve(tmp_path, [("a", {"cls": b"1"}), ("b", {"cls": b"one"})], fields="cls")
    with pytest.raises(ShapeError, match="sample 'b'"):
        served.ask([0, 1])
    assert served.ask([1])["cls"] == [b"one"]


def test_a_shard_that_was_cut_short_is_an_error_of_the_shard(tmp_path: Path) -> None:
    served = serve(tmp_path, _samples(8), fields=FIELDS)
    assert len(served.ask(range(8))["raw"]) == 8
    located = served.stream._reader.first(8)
    (path,) = (tmp_path / "shards").iterdir()
    with path.open("r+b") as file:
        file.truncate(2048)
    assert served.stream._wholesale is not None
    with served.reader, pytest.raises(ShardError, match=r"train-000000\.tar"):
        served.stream._wholesale.read(located, lambda row: None)
