"""What accelerate and the Trainer would do to a loader that is per rank already is refused, on every rank."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.frameworks.conftest import RANKS, SAMPLES, torchrun
from tests.system.loaders import Loader

pytestmark = [pytest.mark.peers, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("misuse.py")


def attempts(python: Path, server: Loader, folder: Path, ranks: int) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    command = [python, *torchrun(ranks), PROGRAM, server.url, folder / "said"]
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((folder / f"said-{rank}").read_text()) for rank in range(ranks)]


def test_on_two_ranks_every_loader_that_shares_again_is_refused(python: Path, server: Loader, tmp_path: Path) -> None:
    for said in attempts(python, server, tmp_path, RANKS):
        for name in ("prepared", "prepared, with workers", "prepared as samples", "state of prepared", "trainer"):
            assert "DataLoaderDispatcher shares among the ranks" in said[name], name
        assert "IterableDatasetShard shares among the ranks" in said["prepared, not dispatched"]
        assert "get_train_dataloader" in said["trainer"]


def test_on_one_rank_a_prepared_loader_gives_everything_but_no_bookmark(
    python: Path, server: Loader, tmp_path: Path
) -> None:
    (said,) = attempts(python, server, tmp_path, 1)
    for name in ("prepared", "prepared, with workers", "prepared, not dispatched"):
        assert sorted(said[name]) == list(range(SAMPLES)), name
    assert "takes a batch ahead" in said["state of prepared"]
    assert said["state after prepared"]["consumed"] == 8  # of a loop of the user's own, which gets what is taken
    assert "batch_size=None" in said["prepared as samples"]
    assert "get_train_dataloader" in said["trainer"]
