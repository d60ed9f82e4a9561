"""The order: its six laws, and a slow second implementation that it must equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardfeed.plan import Cut, Plan, Tail, default_lanes
from shardfeed_wire.errors import ConfigError
from tests.vectors import reference

WORD = (1 << 64) - 1

words = st.integers(0, WORD)
block_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=12)
lane_counts = st.integers(1, 40)
world_sizes = st.integers(1, 5)
batch_sizes = st.integers(1, 7)
tails: st.SearchStrategy[Tail] = st.sampled_from(["exact", "pad", "drop"])
cuts = st.lists(st.tuples(world_sizes, batch_sizes), min_size=1, max_size=20)
"""World size and batch size of each step in turn, the last repeated."""


def located(plan: Plan, positions: np.ndarray) -> list[tuple[int, int]]:
    block, index = plan.locate(positions)
    assert block.dtype == np.uint32
    assert index.dtype == np.uint16
    return list(zip(block.tolist(), index.tolist(), strict=True))


def whole(plan: Plan) -> list[tuple[int, int]]:
    return located(plan, np.arange(plan.samples))


def walked(
    samples: int, tail: Tail, schedule: list[tuple[int, int]]
) -> Iterator[tuple[int, int, list[tuple[int, bool]], int]]:
    """Walk an epoch with another cut at each step; yield (c, G, rows of all ranks in order of positions, consumed)."""
    consumed = number = 0
    while True:
        world_size, batch_size = schedule[min(number, len(schedule) - 1)]
        parts = [Cut(samples, batch_size, rank, world_size, tail).rows(consumed) for rank in range(world_size)]
        there = [part for part in parts if part is not None]
        if not there:
            return
        assert len({part.consumed for part in there}) == 1, "law 5: all ranks stand at the same place"
        rows = [list(zip(part.positions.tolist(), part.padding.tolist(), strict=True)) for part in there]
        interleaved = [ranks[row] for row in range(len(rows[0])) for ranks in rows if row < len(ranks)]
        yield consumed, world_size * batch_size, interleaved, there[0].consumed
        consumed, number = there[0].consumed, number + 1


# --------------------------------------------------------------------------- the plan and the reference


@given(block_sizes, words, words, st.booleans(), lane_counts)
@example([1], WORD, WORD, True, 1)
@example([1], 0, 0, True, 40)
@example([12], WORD, 0, True, 5)
@example([2, 1], 0, 0, False, 4)
def test_the_order_is_what_the_text_of_the_protocol_says(
    sizes: list[int], seed: int, epoch: int, shuffle: bool, lanes: int
) -> None:
    plan = Plan(np.array(sizes, np.uint16), seed=seed, epoch=epoch, shuffle=shuffle, lanes=lanes)
    assert whole(plan) == reference.order(sizes, seed, epoch, shuffle, lanes)


@given(st.integers(1, 30), st.integers(0, 29), batch_sizes, world_sizes, tails)
def test_a_step_is_what_the_text_of_the_protocol_says(
    samples: int, consumed: int, batch_size: int, world_size: int, tail: Tail
) -> None:
    for rank in range(world_size):
        rows = Cut(samples, batch_size, rank, world_size, tail).rows(consumed)
        found = None if rows is None else list(zip(rows.positions.tolist(), rows.padding.tolist(), strict=True))
        assert found == reference.step_rows(samples, consumed, batch_size, rank, world_size, tail)


# ------------------------------------------------------------------------------------------ the laws


@given(block_sizes, words, words, st.booleans(), lane_counts, tails, cuts)
def test_law_1_every_sample_comes_exactly_once_in_an_epoch(
    sizes: list[int], seed: int, epoch: int, shuffle: bool, lanes: int, tail: Tail, schedule: list[tuple[int, int]]
) -> None:
    plan = Plan(np.array(sizes), seed=seed, epoch=epoch, shuffle=shuffle, lanes=lanes)
    rows, last = [], math.prod(schedule[0])
    for number, (_, step_samples, part, _) in enumerate(walked(plan.samples, tail, schedule)):
        rows += part
        last = math.prod(schedule[min(number + 1, len(schedule) - 1)]) if tail == "drop" else step_samples
    data = [position for position, padding in rows if not padding]
    extra = [position for position, padding in rows if padding]
    came = Counter(located(plan, np.array(data, np.int64))) if data else Counter()
    every = Counter((block, sample) for block, size in enumerate(sizes) for sample in range(size))
    assert max(came.values(), default=1) == 1
    assert came <= every
    if tail == "drop":
        assert not extra
        assert (every - came).total() <= last - 1
    else:
        assert came == every
        assert len(extra) <= (last - 1 if tail == "pad" else 0)


@given(st.integers(0, 60), batch_sizes, world_sizes, st.integers(0, 60), st.sampled_from(["pad", "drop"]))
def test_law_2_with_pad_and_drop_every_rank_has_as_many_steps_and_every_batch_is_full(
    samples: int, batch_size: int, world_size: int, consumed: int, tail: Tail
) -> None:
    ranks = [list(Cut(samples, batch_size, rank, world_size, tail).walk(consumed)) for rank in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    assert all(len(rows.positions) == len(rows.padding) == batch_size for steps in ranks for rows in steps)


@given(st.integers(0, 60), batch_sizes, world_sizes, st.integers(0, 70), tails)
def test_the_number_of_steps_left_is_how_many_come(
    samples: int, batch_size: int, world_size: int, consumed: int, tail: Tail
) -> None:
    counts = []
    for rank in range(world_size):
        cut = Cut(samples, batch_size, rank, world_size, tail)
        counts.append(cut.steps(consumed))
        assert counts[-1] == len(list(cut.walk(consumed)))
    assert max(counts) - min(counts) <= (1 if tail == "exact" else 0)


@given(block_sizes, words, lane_counts, st.data())
def test_law_3_what_a_step_holds_depends_on_no_history_and_on_no_world_size(
    sizes: list[int], seed: int, lanes: int, data: st.DataObject
) -> None:
    def fresh() -> Plan:
        return Plan(np.array(sizes), seed=seed, epoch=0, shuffle=True, lanes=lanes)

    used = fresh()
    for positions in data.draw(st.lists(st.lists(st.integers(0, used.samples - 1), min_size=1), max_size=5)):
        used.locate(np.array(positions))
    consumed = data.draw(st.integers(0, used.samples - 1))
    world_size, batch_size = data.draw(world_sizes), data.draw(batch_sizes)
    step = world_size * batch_size
    ranks = [Cut(used.samples, batch_size, rank, world_size).rows(consumed) for rank in range(world_size)]
    together = sorted(position for rows in ranks if rows is not None for position in rows.positions.tolist())
    alone = Cut(used.samples, step).rows(consumed)
    assert alone is not None
    assert together == alone.positions.tolist() == list(range(consumed, min(consumed + step, used.samples)))
    assert located(used, np.array(together)) == located(fresh(), alone.positions)


@given(block_sizes, words, lane_counts, st.sampled_from(["exact", "pad"]), cuts)
def test_law_4_any_cut_at_any_place_goes_on_along_the_same_line(
    sizes: list[int], seed: int, lanes: int, tail: Tail, schedule: list[tuple[int, int]]
) -> None:
    plan = Plan(np.array(sizes), seed=seed, epoch=3, shuffle=True, lanes=lanes)
    before, positions = 0, []
    for consumed, _, rows, after in walked(plan.samples, tail, schedule):
        assert consumed == before
        assert after == min(consumed + len(rows), plan.samples)
        positions += [position for position, padding in rows if not padding]
        before = after
    assert located(plan, np.array(positions)) == whole(plan)


@given(st.integers(1, 60), batch_sizes, world_sizes, tails)
def test_law_5_after_the_same_step_all_ranks_stand_at_the_same_place(
    samples: int, batch_size: int, world_size: int, tail: Tail
) -> None:
    ranks = [
        [rows.consumed for rows in Cut(samples, batch_size, rank, world_size, tail).walk()]
        for rank in range(world_size)
    ]
    for steps in zip(*ranks, strict=False):
        assert len(set(steps)) == 1


@pytest.mark.parametrize(
    ("classes", "a_class", "block", "steps"),
    [
        (100, 400, 40, (32, 256)),
        (1000, 100, 50, (32, 256)),
        (10, 5000, 128, (32, 256)),
        (10, 200, 250, (32, 256)),  # eight blocks
        (16, 1024, 256, (32, 256)),
        (100, 130, 100, (32, 256)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_law_6_batches_of_class_sorted_shards_hold_nearly_the_classes_of_a_full_shuffle(
    classes: int, a_class: int, block: int, steps: tuple[int, ...], seed: int
) -> None:
    samples = classes * a_class
    sizes = np.array([block] * (samples // block) + [samples % block] * (samples % block > 0), np.uint16)
    first = np.cumsum(sizes, dtype=np.int64) - sizes
    plan = Plan(sizes, seed=seed, epoch=0, shuffle=True, lanes=default_lanes(len(sizes), shuffle=True))
    label = np.arange(samples) // a_class
    blocks, inside = plan.locate(np.arange(samples))
    ours = label[first[blocks] + inside]
    shuffled = np.random.default_rng(seed).permutation(label)

    def classes_a_batch(labels: np.ndarray, size: int) -> float:
        return float(np.mean([len(np.unique(labels[c : c + size])) for c in range(0, samples - size, size)]))

    for step in steps:
        assert classes_a_batch(ours, step) >= 0.9 * classes_a_batch(shuffled, step)


# ------------------------------------------------------------------------------------------- corners


def test_seed_and_epoch_each_change_the_order() -> None:
    sizes = np.full(50, 20, np.uint16)
    orders = [whole(Plan(sizes, seed=s, epoch=e, shuffle=True, lanes=16)) for s, e in [(0, 0), (1, 0), (0, 1), (1, 1)]]
    assert len({tuple(order) for order in orders}) == 4


def test_without_shuffle_and_with_one_lane_one_rank_reads_in_file_order() -> None:
    plan = Plan(np.array([3, 1, 2]), seed=5, epoch=5, shuffle=False, lanes=default_lanes(3, shuffle=False))
    assert whole(plan) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]


def test_neighbours_come_from_different_lanes() -> None:
    plan = Plan(np.full(64, 10), seed=0, epoch=0, shuffle=True, lanes=64)
    block, _ = plan.locate(np.arange(64))
    assert len(set(block.tolist())) == 64


def test_a_data_set_without_samples_has_no_steps() -> None:
    plan = Plan(np.array([], np.uint16), seed=0, epoch=0, shuffle=True, lanes=1)
    assert plan.samples == 0
    for tail in ("exact", "pad", "drop"):
        assert Cut(0, 4, tail=tail).steps() == 0
        assert list(Cut(0, 4, tail=tail).walk()) == []


def test_fewer_samples_than_a_step_are_one_short_step_or_a_padded_one_or_none() -> None:
    exact, pad, drop = (list(Cut(3, 4, 0, 2, tail).walk()) for tail in ("exact", "pad", "drop"))
    assert [rows.positions.tolist() for rows in exact] == [[0, 2]]
    assert [rows.positions.tolist() for rows in pad] == [[0, 2, 1, 0]]
    assert [rows.padding.tolist() for rows in pad] == [[False, False, True, True]]
    assert drop == []


def test_two_and_a_half_million_blocks_are_planned_within_seconds() -> None:
    plan = Plan(np.full(2_500_000, 40, np.uint16), seed=0, epoch=0, shuffle=True, lanes=256)
    assert plan.samples == 100_000_000
    assert len(set(located(plan, np.arange(1_000_000, 1_000_256)))) == 256


@pytest.mark.parametrize(
    ("blocks", "shuffle", "lanes"), [(0, True, 1), (5, True, 5), (10**9, True, 256), (10**9, False, 1)]
)
def test_default_lanes(blocks: int, shuffle: bool, lanes: int) -> None:
    assert default_lanes(blocks, shuffle=shuffle) == lanes


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1 << 64}, "seed=18446744073709551616"),
        ({"epoch": -1}, "epoch=-1"),
        ({"epoch": 1 << 64}, "epoch="),
        ({"lanes": 0}, "lanes=0"),
    ],
)
def test_a_plan_that_makes_no_sense_is_a_configuration_error(changed: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Plan(np.array([3]), **{"seed": 0, "epoch": 0, "lanes": 1, "shuffle": True, **changed})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": -1}, "rank=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"world_size": 0}, "world_size=0"),
        ({"tail": "truncate"}, "tail='truncate'"),
    ],
)
def test_a_cut_that_makes_no_sense_is_a_configuration_error(changed: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Cut(**{"samples": 3, "batch_size": 1, **changed})
