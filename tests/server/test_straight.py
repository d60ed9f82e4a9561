"""Arrays read straight into their rows are what the usual way brings, and every wrong guess is noticed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfeed_server.config import FieldConfig, StreamConfig
from shardfeed_server.reading import SampleReader
from shardfeed_server.recipe import Recipe
from shardfeed_server.straight import StraightReader
from shardfeed_wire.errors import ShapeError
from tests.photographs import write_shards
from tests.server.streams import serve
from webdataset.indexing import index_shards
from webdataset.shards import ShardReader

SHAPE = (80, 80, 3)


def _array(number: int, dtype: str = "u1", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 100, shape).astype(dtype)


def _npy(array: np.ndarray, *, fortran: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(array) if fortran else array)
    return stream.getvalue()


class _Straight:
    """A reader over one shard, and the rows that it is given."""

    def __init__(self, folder: Path, samples: list[tuple[str, dict[str, bytes]]], fields: dict[str, str]) -> None:
        manifest = index_shards(write_shards(folder, samples, 1))
        self.shards = ShardReader(manifest)
        reader = SampleReader(manifest, self.shards, frozenset(("npy", "cls", "big.npy")))
        self._located = reader.first(len(samples))
        self._reader = StraightReader(reader, fields)

    def read(self, number: int, **rows: np.ndarray) -> dict[str, Any]:
        return self._reader.read(self._located[number], rows)


def test_from_the_third_sample_on_the_array_is_read_into_its_row(tmp_path: Path) -> None:
    samples = [(f"a/{n}", {"cls": b"%d" % n, "npy": _npy(_array(n)), "txt": b"no field"}) for n in range(4)]
    straight = _Straight(tmp_path, samples, {"npy": "image"})
    with straight.shards:
        for number in range(4):
            row = np.full(SHAPE, 255, np.uint8)
            sample = straight.read(number, image=row)
            assert sample.keys() == {"__key__", "cls", "npy"}
            assert (sample["__key__"], sample["cls"]) == (f"a/{number}", b"%d" % number)
            if number < 2:
                assert sample["npy"] == _npy(_array(number))
            else:
                assert sample["npy"] is row
                np.testing.assert_array_equal(row, _array(number))


@pytest.mark.parametrize(
    "row", [None, np.empty((80, 80), np.uint8), np.empty(SHAPE, np.int8)], ids=["none", "another shape", "a dtype"]
)
def test_a_row_that_the_array_does_not_fit_is_left_alone(tmp_path: Path, row: np.ndarray | None) -> None:
    straight = _Straight(tmp_path, [(f"{n}", {"npy": _npy(_array(n))}) for n in range(3)], {"npy": "npy"})
    with straight.shards:
        for number in range(3):
            assert straight.read(number, **({} if row is None else {"npy": row}))["npy"] == _npy(_array(number))


def test_of_two_arrays_the_larger_is_read_so(tmp_path: Path) -> None:
    larger = (*SHAPE, 2)
    samples = [(f"{n}", {"big.npy": _npy(_array(n, shape=larger)), "npy": _npy(_array(n))}) for n in range(3)]
    straight = _Straight(tmp_path, samples, {"npy": "one", "big.npy": "two"})
    with straight.shards:
        rows = {"one": np.empty(SHAPE, np.uint8), "two": np.empty(larger, np.uint8)}
        found = [straight.read(number, **rows) for number in range(3)][-1]
    assert found["big.npy"] is rows["two"]
    assert found["npy"] == _npy(_array(2))


_MEMBERS = st.fixed_dictionaries(
    {"npy": st.sampled_from(("plain", "plain", "fortran", "version 2"))},
    optional={
        "aa": st.binary(max_size=600),
        "cls": st.just(b"3"),
        "zz": st.binary(max_size=600),
        "small.npy": st.just(_npy(np.zeros(9))),
    },
)


def _stored(number: int, how: str) -> bytes:
    if how == "version 2":
        stream = io.BytesIO()
        np.lib.format.write_array(stream, _array(number), version=(2, 0))
        return stream.getvalue()
    return _npy(_array(number), fortran=how == "fortran")


@given(
    st.lists(st.tuples(_MEMBERS, st.randoms(use_true_random=False)), min_size=3, max_size=12),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_whatever_the_samples_are_like_the_rows_are_theirs(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[Any], long: bool, order: Any
) -> None:
    samples = []
    for number, (members, shuffle) in enumerate(drawn):
        names = list(members)
        shuffle.shuffle(names)
        key = f"{'long/' * 40 if long and number % 2 else ''}{number}"  # a name that needs a header of its own
        stored = {name: _stored(number, members[name]) if name == "npy" else members[name] for name in names}
        samples.append((key, stored))
    asked_for = list(range(len(samples))) * 2
    order.shuffle(asked_for)
    asked = serve(tmp_path_factory.mktemp("straight"), samples, fields="npy").ask(asked_for, keys=True)
    assert not asked.batch.failures
    for row, number in enumerate(asked_for):
        np.testing.assert_array_equal(asked["npy"][row], _array(number))
    assert asked.tensors[2].tobytes().decode() == "".join(samples[number][0] for number in asked_for)


def test_arrays_that_change_places_are_told_apart(tmp_path: Path) -> None:
    stored = [{"npy": _npy(_array(n)), "other.npy": _npy(_array(n + 10))} for n in range(6)]
    stored[3:] = [dict(reversed(each.items())) for each in stored[3:]]
    asked = serve(tmp_path, [(f"{n}", each) for n, each in enumerate(stored)], fields="npy").ask(range(6))
    np.testing.assert_array_equal(asked["npy"], np.stack([_array(n) for n in range(6)]))


def test_an_array_of_another_form_in_the_same_place_is_noticed(tmp_path: Path) -> None:
    samples = [(f"{n}", {"npy": _npy(_array(n, "i1" if n == 3 else "u1"))}) for n in range(4)]
    with pytest.raises(ShapeError, match=r"sample '3' .* has shape \(80, 80, 3\) of int8"):
        serve(tmp_path, samples, fields="npy").ask(range(4))


def test_a_damaged_array_fails_its_own_row_alone(tmp_path: Path) -> None:
    stored = [_npy(_array(n)) for n in range(5)]
    stored[3] = stored[3].replace(b"NUMPY", b"numpy", 1)
    asked = serve(tmp_path, [(f"{n}", {"npy": stored[n]}) for n in range(5)], fields="npy").ask(range(5))
    assert [failure.row for failure in asked.batch.failures] == [3]
    assert not asked["npy"][3].any()
    for number in (0, 1, 2, 4):
        np.testing.assert_array_equal(asked["npy"][number], _array(number))


def test_only_arrays_that_nothing_is_done_to_are_read_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(sample):\n    return sample\n")

    def as_stored(transform: str | None = None, **fields: FieldConfig) -> dict[str, str]:
        return Recipe(StreamConfig(shards=("a.tar",), fields=fields, transform=transform), tmp_path).as_stored

    assert as_stored(a=FieldConfig(ext="npy"), b=FieldConfig(ext="left.npy")) == {"npy": "a", "left.npy": "b"}
    assert not as_stored("mine:f", a=FieldConfig(ext="npy"))
    assert not as_stored(
        a=FieldConfig(ext="npy", decode=False),
        b=FieldConfig(ext="npy", collate="ragged"),
        c=FieldConfig(ext="npy;ten"),
        d=FieldConfig(ext="ten"),
        e=FieldConfig(ext="npy", label_map={"a": 1}),
    )
