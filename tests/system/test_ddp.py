"""Ranks of torch.distributed: they share an epoch, end it together, and notice when they disagree."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.photographs import Photographs
from tests.system.loaders import Loader, write_photographs

SAMPLES = 150  # no multiple of any step below
BATCH = 8
SECONDS = 100.0

TRAINER = """
import json, os, sys
import torch, torch.distributed as distributed
import shardfeed

url, port, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rank, world_size = int(sys.argv[4]), int(sys.argv[5])
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
state, steps = options.pop("state", None), options.pop("steps", None)
options |= options.pop("by_rank", {}).get(str(rank), {})
if (size := options.pop("tensor_parallel", None)) is not None:
    options |= {"rank": rank // size, "world_size": world_size // size}
if (size := options.pop("group_of_every", None)) is not None:
    # As a device mesh does: ranks with one place in their tensor-parallel groups share an epoch.
    groups = [distributed.new_group(range(first, world_size, size)) for first in range(size)]
    options["process_group"] = groups[rank % size]
keys, sums, taken = [], [], 0
said = {}
try:
    with shardfeed.RemoteDataset(url, batch_size=8, info=True, **options) as dataset:
        if state is not None:
            dataset.load_state_dict(state)
        for images, labels, info in dataset:
            distributed.all_reduce(torch.ones(1))  # as a training step does: hangs where a rank has fewer
            keys += [key for key, valid in zip(info.keys, info.valid.tolist()) if valid]
            sums.append(int(images.sum()))
            taken += 1
            if taken == steps:
                break
        said = {"keys": keys, "sums": sums, "steps": taken, "state": dataset.state_dict(), "length": len(dataset)}
except shardfeed.ConfigError as error:
    said = {"error": str(error)}
distributed.barrier()
distributed.destroy_process_group()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def server(thumbnails: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loader]:
    folder = tmp_path_factory.mktemp("ddp")
    large = write_photographs(folder, thumbnails[:110], count=1, name="large")
    shards = large + write_photographs(folder, thumbnails[110:SAMPLES], count=2, name="small")
    with Loader.of(shards, "--workers", "1") as server:
        yield server


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


def train(server: Loader, world_size: int, **options: Any) -> list[dict[str, Any]]:
    """Run the ranks in processes of their own; returns what each says."""
    common = [server.url, str(free_port()), json.dumps(options)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINER, *common, str(rank), str(world_size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        said = []
        for process in processes:
            output, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, errors
            said.append(json.loads(output.splitlines()[-1]))
        return said
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_ranks_share_an_epoch_in_equal_steps_and_end_together(server: Loader) -> None:
    ranks = train(server, 2)
    assert [said["steps"] for said in ranks] == [10, 10]
    assert [said["length"] for said in ranks] == [10, 10]
    keys = [key for said in ranks for key in said["keys"]]
    assert len(keys) == len(set(keys)) == SAMPLES
    assert ranks[0]["state"] == ranks[1]["state"]


@pytest.mark.timeout(120)
def test_a_run_of_four_ranks_goes_on_with_two(server: Loader) -> None:
    four = train(server, 4, steps=2)
    state = four[0]["state"]
    assert all(said["state"] == state for said in four)
    two = train(server, 2, state=state)
    assert two[0]["steps"] == two[1]["steps"] == -(-(SAMPLES - 4 * BATCH * 2) // (2 * BATCH))
    keys = [key for said in (*four, *two) for key in said["keys"]]
    assert len(keys) == len(set(keys)) == SAMPLES


def test_a_rank_with_another_seed_is_named_on_every_rank(server: Loader) -> None:
    ranks = train(server, 2, by_rank={"1": {"seed": 5}})
    for said in ranks:
        assert "rank 1: seed is 5, not 0" in said["error"]


@pytest.mark.timeout(120)
def test_ranks_of_data_parallel_groups_share_an_epoch_and_tensor_parallel_ones_receive_identical_batches(
    server: Loader,
) -> None:
    ranks = train(server, 4, group_of_every=2)
    assert ranks[0] == ranks[1]
    assert ranks[2] == ranks[3]
    keys = ranks[0]["keys"] + ranks[2]["keys"]
    assert len(keys) == len(set(keys)) == SAMPLES


def test_tensor_parallel_ranks_that_are_given_one_rank_receive_identical_batches(server: Loader) -> None:
    ranks = train(server, 2, tensor_parallel=2, steps=5)
    assert ranks[0] == ranks[1]
    assert len(ranks[0]["keys"]) == 5 * BATCH
