"""The examples for training frameworks: two ranks are killed in mid-epoch, and go on with no sample lost or twice.

Every sample has its own label, and what is compared are the labels that reached the loss, on each rank in each step.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from shardfeed import RemoteDataset
from tests.frameworks.conftest import RANKS, SAMPLES, torchrun
from tests.interop.environments import ROOT
from tests.system.loaders import Loader

BATCH, EPOCHS = 8, 2
STEPS = SAMPLES // (BATCH * RANKS)
SAVED = 8
"""The last step before the end at which the examples save, in the second epoch's middle."""

PROGRAM = Path(__file__).with_name("program.py")

RAY = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
"""A cluster of its own, whatever another one has left on this machine, and nothing sent or kept at home."""

Batches = list[list[int]]


@pytest.fixture(scope="module")
def planned(server: Loader) -> list[Batches]:
    """The labels of each rank's batches over all epochs."""
    ranks = []
    for rank in range(RANKS):
        with RemoteDataset(server.url, batch_size=BATCH, rank=rank, world_size=RANKS) as dataset:
            ranks.append([labels.tolist() for _ in range(EPOCHS) for _, labels in dataset])
    for epoch in range(EPOCHS):
        part = slice(epoch * STEPS, (epoch + 1) * STEPS)
        assert sorted(label for rank in ranks for batch in rank[part] for label in batch) == list(range(SAMPLES))
    return ranks


def train(
    command: list[object],
    example: str,
    notes: Path,
    *,
    end_in_step: int = 0,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, list[Batches], str]:
    """Run an example to its end, or to that of its ranks; its status, each rank's batches, and what it printed."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "EXAMPLE": str(ROOT / "examples" / example),
        "NOTES": str(notes),
        "END_IN_STEP": str(end_in_step),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "TMPDIR": str(notes.parent),  # torchrun leaves a folder there when its ranks are killed
        **RAY,
        **variables,
    }
    with subprocess.Popen(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=150)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a rank whose parent ended
    ranks = []
    for rank in range(RANKS):
        path = notes.with_name(f"{notes.name}-{rank}")
        lines = path.read_text().splitlines() if path.exists() else []
        ranks.append([json.loads(line) for line in lines])
    return process.returncode, ranks, said


def goes_on(command: list[object], example: str, folder: Path, planned: list[Batches]) -> None:
    status, first, said = train(command, example, folder / "first", end_in_step=SAVED + 2)
    assert status != 0, said
    assert [rank[:SAVED] for rank in first] == [rank[:SAVED] for rank in planned], said
    assert max(len(rank) for rank in first) == SAVED + 1, said
    status, second, said = train(command, example, folder / "second")
    assert status == 0, said
    assert second == [rank[SAVED:] for rank in planned], said


def arguments(server: Loader, folder: Path) -> list[object]:
    return [
        server.url,
        "--checkpoints",
        folder / "run",
        "--classes",
        SAMPLES,
        "--epochs",
        EPOCHS,
        "--batch-size",
        BATCH,
    ]


@pytest.mark.timeout(300)
def test_plain_ddp_goes_on_in_mid_epoch(server: Loader, planned: list[Batches], tmp_path: Path) -> None:
    command = [sys.executable, *torchrun(RANKS), PROGRAM, *arguments(server, tmp_path)]
    goes_on(command, "train_ddp.py", tmp_path, planned)


@pytest.mark.peers
@pytest.mark.timeout(900)  # the first of them makes the environment
@pytest.mark.parametrize("example", ["train_accelerate.py", "train_hf_trainer.py"])
def test_accelerate_and_the_trainer_go_on_in_mid_epoch(
    python: Path, server: Loader, planned: list[Batches], tmp_path: Path, example: str
) -> None:
    goes_on([python, *torchrun(RANKS), PROGRAM, *arguments(server, tmp_path)], example, tmp_path, planned)


@pytest.mark.peers
@pytest.mark.timeout(900)
def test_lightning_goes_on_in_mid_epoch(python: Path, server: Loader, planned: list[Batches], tmp_path: Path) -> None:
    command = [python, PROGRAM, *arguments(server, tmp_path), "--devices", RANKS]
    goes_on(command, "train_lightning.py", tmp_path, planned)


@pytest.mark.peers
@pytest.mark.timeout(900)
def test_ray_train_starts_workers_that_died_again_and_they_go_on_from_a_checkpoint(
    python: Path, server: Loader, planned: list[Batches], tmp_path: Path
) -> None:
    command = [python, PROGRAM, *arguments(server, tmp_path), "--workers", RANKS]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:  # the names of Ray's sockets begin with it
        status, ranks, said = train(
            command, "train_ray.py", tmp_path / "notes", end_in_step=SAVED + 2, variables={"RAY_TMPDIR": short}
        )
    assert status == 0, said
    assert [rank[: SAVED + 1] for rank in ranks] == [rank[: SAVED + 1] for rank in planned], said
    again = [rank[SAVED + 1 :] for rank in ranks]
    # Ray notes a checkpoint a little after it was reported, and these workers died at once.
    assert again in ([rank[SAVED:] for rank in planned], [rank[SAVED // 2 :] for rank in planned]), said


@pytest.mark.peers
@pytest.mark.timeout(900)
def test_workers_of_ray_train_without_torch_distributed_share_an_epoch_by_its_context(
    python: Path, server: Loader, planned: list[Batches], tmp_path: Path
) -> None:
    program = Path(__file__).with_name("ray_ranks.py")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:
        command = [python, program, server.url, tmp_path / "runs", BATCH, RANKS]
        status, ranks, said = train(command, "", tmp_path / "notes", variables={"RAY_TMPDIR": short})
    assert status == 0, said
    assert ranks == [rank[:STEPS] for rank in planned], said
