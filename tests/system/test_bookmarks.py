"""A trainer that stops in mid-epoch goes on exactly there, with any ranks, batch size, servers and loader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from shardfeed import ConfigError, DataMismatchError, RecipeMismatchError, RemoteDataset
from tests.photographs import Photographs
from tests.system.loaders import Loader, wait_until, write_photographs

pytestmark = pytest.mark.xdist_group("bookmarks")  # one process starts the server of all

SAMPLES = 240
OPTIONS = ("--workers", "1")


@pytest.fixture(scope="module")
def shards(thumbnails: Photographs, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photographs(tmp_path_factory.mktemp("bookmarks"), thumbnails[:SAMPLES], count=6)


@pytest.fixture(scope="module")
def server(shards: list[Path]) -> Iterator[Loader]:
    with Loader.of(shards, *OPTIONS) as server:
        yield server


@pytest.fixture(scope="module")
def other(shards: list[Path], temporary_folder: Path) -> Iterator[Loader]:
    with Loader.of(shards, *OPTIONS, bind=[f"ipc://{temporary_folder}/other"]) as server:
        yield server


Open = Callable[..., RemoteDataset]


@pytest.fixture
def opened(server: Loader) -> Iterator[Open]:
    made: list[RemoteDataset] = []

    def make(url: str | None = None, **options: Any) -> RemoteDataset:
        made.append(RemoteDataset(url or server.url, info=True, **{"batch_size": 16, **options}))
        return made[-1]

    yield make
    while made:
        made.pop().close()


def valid_keys(info: Any) -> list[str]:
    return [key for key, valid in zip(info.keys, info.valid.tolist(), strict=True) if valid]


def take(dataset: RemoteDataset, batches: int | None = None) -> list[str]:
    """The keys of some batches of the epoch, or of the rest of it."""
    keys: list[str] = []
    for number, (*_, info) in enumerate(dataset, start=1):
        keys += valid_keys(info)
        if number == batches:
            break
    return keys


def interleaved(ranks: list[list[str]]) -> list[str]:
    """One step's keys in the order of the line: rank r has every W-th."""
    return [key for row in zip(*ranks, strict=True) for key in row]


@pytest.fixture(scope="module")
def line(server: Loader) -> list[str]:
    with RemoteDataset(server.url, batch_size=16, info=True) as dataset:
        return take(dataset)


def test_the_state_is_of_the_batch_last_delivered_and_json_knows_it(opened: Open, line: list[str]) -> None:
    dataset = opened()
    assert take(dataset, 5) == line[:80]
    state = json.loads(json.dumps(dataset.state_dict()))
    assert (state["epoch"], state["consumed"]) == (0, 80)
    assert len(json.dumps(state)) < 400
    resumed = opened(batch_size=40)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert take(resumed) == line[80:]
    assert resumed.epoch == 1


def test_resuming_works_with_4_then_3_then_8_ranks_and_then_one(opened: Open, other: Loader, line: list[str]) -> None:
    state = opened().state_dict()
    read: list[str] = []
    for world_size, batch_size, steps in ((4, 5, 2), (3, 7, 3), (8, 2, 2)):
        states, parts = [], []
        for rank in range(world_size):
            url = [None, other.url][rank % 2]
            dataset = opened(url, rank=rank, world_size=world_size, batch_size=batch_size, framing="single")
            dataset.load_state_dict(state)
            parts.append(take(dataset, steps))
            states.append(dataset.state_dict())
        assert all(each == states[0] for each in states)
        state = states[0]
        for step in range(steps):
            rows = slice(step * batch_size, (step + 1) * batch_size)
            read += interleaved([part[rows] for part in parts])
    last = opened(other.url)
    last.load_state_dict(state)
    assert read + take(last) == line


def test_the_end_of_an_epoch_is_the_beginning_of_the_next_on_every_rank(opened: Open) -> None:
    states = []
    for rank in range(3):
        dataset = opened(rank=rank, world_size=3, batch_size=77, tail="exact")
        take(dataset, 2 if rank < 3 else 1)
        states.append(dataset.state_dict())
    assert [(state["epoch"], state["consumed"]) for state in states] == [(1, 0)] * 3
    resumed = opened()
    resumed.load_state_dict(states[0])
    assert resumed.epoch == 1
    fresh = opened()
    fresh.set_epoch(1)
    assert take(resumed) == take(fresh)


def test_the_digests_of_the_parts_add_up_to_that_of_the_whole(opened: Open) -> None:
    whole = opened()
    take(whole)
    first = opened()
    take(first, 7)
    second = opened()
    second.load_state_dict(first.state_dict())
    take(second)
    assert (int(first.digest, 16) + int(second.digest, 16)) % 2**128 == int(whole.digest, 16)


def test_set_epoch_to_the_bookmarks_own_epoch_keeps_it(opened: Open, line: list[str]) -> None:
    dataset = opened()
    take(dataset, 3)
    resumed = opened()
    resumed.load_state_dict(dataset.state_dict())
    resumed.set_epoch(0)
    assert take(resumed) == line[48:]
    resumed.load_state_dict(dataset.state_dict())
    resumed.set_epoch(1)
    assert len(take(resumed)) == SAMPLES


def test_leaving_and_beginning_again_restarts_the_epoch(opened: Open, line: list[str]) -> None:
    dataset = opened()
    take(dataset, 3)
    assert dataset.state_dict()["consumed"] == 48
    assert take(dataset) == line


@pytest.mark.parametrize(
    ("options", "words"),
    [({"seed": 1}, "seed=0, not 1"), ({"shuffle": False}, "shuffle=True, not False"), ({"lanes": 3}, "lanes=.*not 3")],
)
def test_a_bookmark_of_another_order_is_refused_with_what_differs(
    opened: Open, options: dict[str, Any], words: str
) -> None:
    state = opened().state_dict()
    with pytest.raises(ConfigError, match=words):
        opened(**options).load_state_dict(state)


def test_what_is_no_bookmark_is_refused(opened: Open) -> None:
    state = opened().state_dict()
    for wrong in (
        {},
        {**state, "consumed": -1},
        {**state, "version": 99},
        {**state, "lanes": "many"},
        {**state, "lanes": 1 << 70},
    ):
        with pytest.raises(ConfigError, match="bookmark"):
            opened().load_state_dict(wrong)


def test_another_data_set_is_refused_and_another_recipe_must_be_allowed(
    opened: Open, shards: list[Path], line: list[str]
) -> None:
    dataset = opened()
    take(dataset, 2)
    state = dataset.state_dict()
    with Loader.of(shards[:3], *OPTIONS) as less:
        resumed = opened(less.url)
        resumed.load_state_dict(state)
        with pytest.raises(DataMismatchError, match="120 samples"):
            iter(resumed)
    with Loader.of(shards, "--resize", "16x16", "--workers", "1") as smaller:
        resumed = opened(smaller.url)
        resumed.load_state_dict(state)
        with pytest.raises(RecipeMismatchError, match="allow_recipe_change=True"):
            iter(resumed)
        resumed = opened(smaller.url, allow_recipe_change=True)
        resumed.load_state_dict(state)
        assert take(resumed) == line[32:]


# ------------------------------------------------------------------------------------ DataLoader


def of_loader(loader: Any, batches: int | None = None) -> list[str]:
    keys: list[str] = []
    for number, (*_, info) in enumerate(loader, start=1):
        keys += valid_keys(info)
        if number == batches:
            break
    return keys


@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
def test_plain_workers_go_on_from_a_computed_bookmark(opened: Open, line: list[str]) -> None:
    dataset = opened()
    assert of_loader(DataLoader(dataset, batch_size=None, num_workers=2), 5) == line[:80]
    with pytest.raises(ConfigError, match=r"num_workers=0.*StatefulDataLoader.*bookmark\(batches=K\)"):
        dataset.state_dict()
    state = dataset.bookmark(batches=5)
    assert state["consumed"] == 80
    resumed = opened()
    resumed.load_state_dict(state)
    assert of_loader(DataLoader(resumed, batch_size=None, num_workers=1)) == line[80:]


@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_computed_bookmark_is_of_the_loops_epoch_though_workers_have_made_all_its_batches(
    opened: Open, workers: int
) -> None:
    dataset = opened()
    steps = len(dataset)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=steps if workers else None)
    taken = iter(loader)
    for batches in range(1, steps):
        next(taken)
        if workers:
            wait_until(lambda: dataset.epoch == 1, what="that the workers are ahead to the end of the epoch")
        state = dataset.bookmark(batches)
        assert (state["epoch"], state["consumed"]) == (0, 16 * batches)
    assert len(list(taken)) == 1
    for batches in (steps, 0):  # after the epoch: all of it was taken, or nothing of the next one
        state = dataset.bookmark(batches)
        assert (state["epoch"], state["consumed"]) == (1, 0)
    with pytest.raises(ConfigError, match=r"bookmark\(batches=-1\)"):
        dataset.bookmark(-1)


def test_a_bookmark_that_is_loaded_is_where_batches_are_counted_from(opened: Open) -> None:
    dataset, resumed = opened(), opened()
    take(dataset, 3)
    resumed.load_state_dict(dataset.state_dict())
    for batches in (0, 2):
        assert resumed.bookmark(batches)["consumed"] == 16 * (3 + batches)
    take(resumed, 1)
    assert resumed.bookmark(1)["consumed"] == 16 * 4


@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_advance_and_follow_set_epoch_with_workers(opened: Open, persistent: bool) -> None:
    alone = opened()
    epochs = [take(alone), take(alone), take(alone)]
    dataset = opened()
    loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=persistent)
    assert of_loader(loader) == epochs[0]
    assert dataset.epoch == 1
    assert of_loader(loader) == epochs[1]
    dataset.set_epoch(0)
    assert of_loader(loader) == epochs[0]
    dataset.set_epoch(2)
    assert of_loader(loader) == epochs[2]
    del loader


@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata's own
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_dataloader_resumes_with_the_same_workers(opened: Open, line: list[str], workers: int) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(opened(), batch_size=None, num_workers=workers)
    batches = iter(loader)
    first: list[str] = []
    for _ in range(5):
        *_, info = next(batches)
        first += valid_keys(info)
    state = loader.state_dict()
    rest = [key for *_, info in batches for key in valid_keys(info)]
    assert first + rest == line
    resumed = StatefulDataLoader(opened(), batch_size=None, num_workers=workers)
    resumed.load_state_dict(state)
    assert of_loader(resumed) == line[80:]
    assert len(of_loader(resumed)) == SAMPLES


@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata's own
def test_the_state_of_another_number_of_workers_is_refused_and_a_computed_bookmark_goes_on(
    opened: Open, line: list[str]
) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    dataset = opened()
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=2)
    assert of_loader(loader, 5) == line[:80]
    state = loader.state_dict()
    (worker,) = [each for name, each in state["_snapshot"]["_worker_snapshots"].items() if name.endswith("_0")]
    with pytest.raises(ConfigError, match=r"bookmark\(batches=K\)"):
        opened().load_state_dict(worker["dataset_state"])
    resumed = opened()
    resumed.load_state_dict(dataset.bookmark(batches=5))
    assert of_loader(StatefulDataLoader(resumed, batch_size=None, num_workers=1)) == line[80:]


# ------------------------------------------------------------------------------------ what frameworks do


def test_a_pass_left_after_its_last_batch_is_a_full_one(opened: Open) -> None:
    alone, counted = opened(), opened()
    for _ in range(3):  # a loop that counts to `len`, as Lightning's, never asks for the end
        assert take(counted, len(counted)) == take(alone)
    assert counted.epoch == 2
    counted.set_epoch(2)
    alone.set_epoch(2)
    assert take(counted) == take(alone)
    assert counted.epoch == 3


def test_after_a_pass_the_bookmark_is_of_the_epoch_that_set_epoch_asked_for_meanwhile(opened: Open) -> None:
    dataset = opened()
    batches = iter(dataset)
    next(batches)
    dataset.set_epoch(5)
    assert len(list(batches)) == len(dataset) - 1
    state = dataset.state_dict()
    assert (dataset.epoch, state["epoch"], state["consumed"]) == (5, 5, 0)


def test_a_batch_whose_transform_raised_was_not_delivered(opened: Open, line: list[str]) -> None:
    def transform(batch: Any) -> Any:
        if batch[-1].step == 2:
            raise MemoryError
        return batch

    failing, whole = opened(batch_transform=transform), opened()
    with pytest.raises(MemoryError):
        take(failing)
    assert take(whole, 2) == line[:32]
    assert (failing.state_dict(), failing.digest) == (whole.state_dict(), whole.digest)


def test_an_epoch_without_steps_is_passed_once(opened: Open) -> None:
    dataset = opened(batch_size=SAMPLES + 1, drop_last=True)
    for epoch in range(2):
        assert (dataset.epoch, dataset.state_dict()["epoch"]) == (epoch, epoch)
        assert take(dataset) == []


def test_a_bookmark_counts_until_a_batch_was_delivered(opened: Open, line: list[str]) -> None:
    dataset = opened()
    take(dataset, 3)
    resumed = opened()
    resumed.load_state_dict(dataset.state_dict())
    iter(resumed)
    assert take(resumed, 2) == line[48:80]
    assert take(resumed, 2) == line[:32]


def test_a_bookmark_that_set_epoch_gives_up_is_named_in_the_log(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    dataset = opened()
    take(dataset, 3)
    resumed = opened()
    resumed.load_state_dict(dataset.state_dict())
    resumed.set_epoch(4)
    assert "gives up the bookmark that was loaded, of epoch 0 after 48 samples" in caplog.text


def test_the_last_epoch_that_there_is_comes_whole_and_what_would_follow_is_refused(
    opened: Open, line: list[str]
) -> None:
    dataset = opened()
    with pytest.raises(ConfigError, match=r"epoch=9223372036854775807: it lies in 0 \.\. 2\*\*63 - 2"):
        dataset.set_epoch((1 << 63) - 1)
    dataset.set_epoch((1 << 63) - 2)
    assert sorted(take(dataset)) == sorted(line)
    with pytest.raises(ConfigError, match="was the last that there is; call set_epoch"):
        take(dataset)
    with pytest.raises(ConfigError, match="lies in"):
        opened().load_state_dict(dataset.state_dict())
    dataset.set_epoch(0)
    assert take(dataset) == line


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_dataloader_that_makes_batches_of_batches_is_refused(opened: Open, batch_size: int) -> None:
    with pytest.raises(ConfigError, match="batch_size=None"):
        iter(DataLoader(opened(), batch_size=batch_size))
    groups = DataLoader(opened(), batch_size=batch_size, collate_fn=lambda batches: batches)
    assert len(next(iter(groups))) == batch_size


@pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks.*:DeprecationWarning")
def test_a_dataloader_that_makes_batches_of_batches_in_workers_is_refused(opened: Open) -> None:
    batches = iter(DataLoader(opened(), batch_size=4, num_workers=1))
    with pytest.raises(ConfigError, match="batch_size=None"):
        next(batches)
    batches._shutdown_workers()  # type: ignore[attr-defined]  # which takes torch as long as the check for leaks waits
