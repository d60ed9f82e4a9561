"""The next epoch's first batches are asked for before it is begun, and nothing of that shows but the time saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shardfeed import RemoteDataset, SampleError
from tests.photographs import Photographs, write_shards
from tests.system.loaders import Loader, wait_until, write_photographs

pytestmark = pytest.mark.xdist_group("next-epoch")  # one process starts the server of all

SAMPLES, BATCH = 128, 16
OPTIONS = ("--workers", "1")


@pytest.fixture(scope="module")
def server(thumbnails: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    shards = write_photographs(tmp_path_factory.mktemp("next"), thumbnails[:SAMPLES], count=2)
    with Loader.of(shards, *OPTIONS) as server:
        yield server


def begun_ahead(dataset: RemoteDataset) -> int:
    """How many batches of the next epoch lie ready."""
    assert dataset._connection._open is not None
    ahead = dataset._connection._open.session._ahead
    return 0 if ahead is None or ahead.fetching is None else len(ahead.fetching.feed._batches)


def pictures(dataset: RemoteDataset) -> list[torch.Tensor]:
    return [images.clone() for images, _ in dataset]


def alone(server: Loader, epoch: int) -> tuple[list[torch.Tensor], int]:
    """An epoch as a data set gets it that has had no other, and its digest."""
    with RemoteDataset(server.url, batch_size=BATCH, digest="content") as dataset:
        dataset.set_epoch(epoch)
        return pictures(dataset), int(dataset.digest, 16)


def test_the_first_batches_of_the_next_epoch_are_there_without_any_server(
    thumbnails: Photographs, tmp_path: Path
) -> None:
    shards = write_photographs(tmp_path, thumbnails[:SAMPLES], count=2)
    with (
        Loader.of(shards, *OPTIONS) as server,
        RemoteDataset(server.url, batch_size=BATCH, info=True) as dataset,
    ):
        for _ in dataset:
            pass
        wait_until(lambda: begun_ahead(dataset) == 4, what="the next epoch's first batches")
        server.kill()
        batches = iter(dataset)
        infos = [next(batches)[-1] for _ in range(4)]
        assert [(info.epoch, info.step) for info in infos] == [(1, 0), (1, 1), (1, 2), (1, 3)]
        del batches


def test_epochs_one_after_the_other_are_what_each_is_alone(server: Loader) -> None:
    apart = [alone(server, epoch) for epoch in range(3)]
    with RemoteDataset(server.url, batch_size=BATCH, digest="content") as dataset:
        for epoch in range(3):
            assert dataset.state_dict()["epoch"] == epoch
            assert all(map(torch.equal, pictures(dataset), apart[epoch][0]))
        assert int(dataset.digest, 16) == sum(digest for _, digest in apart) % (1 << 128)
        assert dataset.state_dict()["consumed"] == 0


def test_a_window_too_small_for_what_is_begun_ahead_loses_no_step(server: Loader) -> None:
    with RemoteDataset(server.url, batch_size=BATCH, prefetch_bytes=1) as dataset:
        for _ in range(3):
            assert len(pictures(dataset)) == SAMPLES // BATCH


def test_what_was_begun_ahead_is_dropped_where_the_trainer_goes_elsewhere(server: Loader) -> None:
    fifth, _ = alone(server, 5)
    with RemoteDataset(server.url, batch_size=BATCH) as dataset:
        batches = iter(dataset)
        next(batches)
        state = dataset.state_dict()
        first = [images.clone() for images, _ in batches]
        wait_until(lambda: begun_ahead(dataset) == 4)
        dataset.set_epoch(5)
        assert all(map(torch.equal, pictures(dataset), fifth))
        wait_until(lambda: begun_ahead(dataset) == 4)
        dataset.load_state_dict(state)
        again = pictures(dataset)
        assert len(again) == len(first)
        assert all(map(torch.equal, again, first))


def test_a_bad_sample_of_the_next_epoch_is_raised_in_that_epoch(thumbnails: Photographs, tmp_path: Path) -> None:
    samples = [(key, {"jpg": jpeg, "cls": str(label).encode()}) for key, jpeg, label in thumbnails[:SAMPLES]]
    samples[0][1]["jpg"] = b"no picture"
    shards = write_shards(tmp_path, samples, 2, "bad")
    with (
        Loader.of(shards, *OPTIONS) as server,
        RemoteDataset(server.url, batch_size=BATCH, shuffle=False) as dataset,
    ):
        with pytest.raises(SampleError):
            next(iter(dataset))
        state = dataset.state_dict()
        dataset.load_state_dict({**state, "consumed": BATCH})
        for _ in range(2):
            assert len(pictures(dataset)) == SAMPLES // BATCH - 1
            with pytest.raises(SampleError):
                next(iter(dataset))
            dataset.load_state_dict({**state, "consumed": BATCH})
