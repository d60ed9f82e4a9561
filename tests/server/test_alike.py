"""Answers whose arrays are read straight, all rows at once, are those made row by row; what is not alike is noticed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from shardfeed_server import alike
from shardfeed_server.reading import Located
from shardfeed_server.straight import StraightReader
from shardfeed_wire.errors import ShapeError, ShardError
from tests.server.streams import Served, serve

ONE_BY_ONE = {10**6: "no row of the request"}
"""Bad rows, with which an answer is made row by row."""


def _npy(number: int, shape: tuple[int, ...] = (5, 7), dtype: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(number).integers(0, 100, shape).astype(dtype))
    return stream.getvalue()


def _samples(count: int, **form: object) -> list[tuple[str, dict[str, bytes]]]:
    texts = [b"", b"plain", "grüß".encode(), b"a" * 600]
    return [
        (
            f"a.b/k{n}",
            {"npy": _npy(n, **form), "cls": b"%d" % n, "txt": texts[n % 4], "no": b"field", "json": b'[%d, "a"]' % n},
        )
        for n in range(count)
    ]


def _warm(served: Served) -> Served:
    """Let it learn where samples have their arrays."""
    served.ask([0, 1, 2])
    served.touched.clear()
    return served


def _same(served: Served, numbers: list[int], *, keys: bool = False) -> None:
    """An answer is the one made row by row."""
    one, other = served.ask(numbers, keys=keys), served.ask(numbers, keys=keys, bad_rows=ONE_BY_ONE)
    assert one.batch.columns == other.batch.columns
    assert (one.batch.first, one.batch.shards) == (other.batch.first, other.batch.shards)
    assert len(one.tensors) == len(other.tensors)
    for mine, theirs in zip(one.tensors, other.tensors, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("fields", ["npy cls", "text=txt array=npy", "npy", "json npy"])
@pytest.mark.parametrize("form", [{}, {"shape": (3, 80, 80), "dtype": "u1"}, {"shape": (1,), "dtype": "<i8"}])
@pytest.mark.parametrize("keys", [False, True])
def test_an_answer_made_at_once_is_the_one_made_row_by_row(
    tmp_path: Path, fields: str, form: dict[str, object], keys: bool
) -> None:
    served = _warm(serve(tmp_path, _samples(40, **form), shards=2, fields=fields))
    _same(served, [39, 0, 7, 7, *range(20)], keys=keys)


def test_no_sample_is_read_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = _warm(serve(tmp_path, _samples(40), fields="npy cls"))

    def read(*_: object) -> None:
        raise AssertionError("a sample was read by itself")

    monkeypatch.setattr(StraightReader, "read", read)
    asked = served.ask([39, 3])
    assert served.touched == [0, 1]
    assert asked["cls"].tolist() == [39, 3]
    np.testing.assert_array_equal(asked["npy"], [np.load(io.BytesIO(_npy(n))) for n in (39, 3)])


@pytest.mark.parametrize("window", [4096, 1024], ids=["a few samples each", "less than a sample"])
def test_samples_of_more_than_a_window_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(alike, "_WINDOW", window)
    _same(_warm(serve(tmp_path, _samples(20), fields="npy txt")), list(range(20)))


@pytest.mark.parametrize("form", [{"shape": (7, 5)}, {"dtype": "<i4"}, {"shape": (5, 8)}], ids=str)
def test_an_array_of_another_form_is_noticed(tmp_path: Path, form: dict[str, object]) -> None:
    samples = [*_samples(4), ("odd", {"npy": _npy(9, **form), "cls": b"9", "txt": b"", "no": b"field"})]
    served = _warm(serve(tmp_path, samples, fields="npy cls"))
    with pytest.raises(ShapeError, match="'odd'"):
        served.ask([0, 1, 4])
    np.testing.assert_array_equal(served.ask([4])["npy"], [np.load(io.BytesIO(_npy(9, **form)))])
    for _ in range(3):
        _same(served, [0, 1, 2, 3])


def test_a_sample_with_its_members_in_another_order_is_as_good(tmp_path: Path) -> None:
    samples = _samples(6)
    samples[3] = (samples[3][0], dict(reversed(samples[3][1].items())))
    served = _warm(serve(tmp_path, samples, fields="npy cls"))
    for _ in range(4):
        _same(served, [5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize(
    ("member", "field", "reason"),
    [
        ({"cls": b"9" * 30}, "cls", "does not fit 64 bits"),
        ({"txt": b"\xff"}, "txt", "UnicodeDecodeError"),
        ({"npy": b"\x93NUMPY"}, "npy", "does not decode"),
    ],
    ids=["a large number", "no UTF-8", "no array"],
)
def test_one_bad_sample_is_a_failure_among_good_ones(
    tmp_path: Path, member: dict[str, bytes], field: str, reason: str
) -> None:
    samples = _samples(6)
    samples[4] = ("bad", {**samples[4][1], **member})
    asked = _warm(serve(tmp_path, samples, fields="npy=npy cls=cls txt=txt")).ask([0, 3, 4, 5])
    (failure,) = asked.batch.failures
    assert (failure.row, failure.key, failure.field) == (2, "bad", field)
    assert reason in failure.reason
    assert asked["cls"].tolist() == [0, 3, 0, 5]
    assert not asked["npy"][2].any()


def test_a_shard_that_is_cut_short_under_way_is_an_error_of_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = _warm(serve(tmp_path, _samples(8), fields="npy cls"))
    (path,) = (tmp_path / "shards").iterdir()
    locate = served.stream._reader.locate

    def cut(block: np.ndarray, index: np.ndarray) -> list[Located]:
        located = locate(block, index)
        with path.open("r+b") as file:
            file.truncate(8192)
        return located

    monkeypatch.setattr(served.stream._reader, "locate", cut)
    with pytest.raises(ShardError, match=r"train-000000\.tar"):
        served.ask(range(8))
