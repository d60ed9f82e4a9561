"""The notebook runs through; cells run again and interrupted cells leave no thread behind, and lose no batch."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from tests.interop.environments import ROOT
from tests.system.loaders import Loader


@pytest.mark.peers
@pytest.mark.timeout(900)
def test_cells_that_are_run_again_or_interrupted_lose_no_batch_and_leave_no_thread(
    python: Path, server: Loader, tmp_path: Path
) -> None:
    with RemoteDataset(server.url, batch_size=8) as dataset:
        planned = [labels.tolist() for _ in range(3) for _, labels in dataset]
    environment = {
        **os.environ,
        "SHARDFEED_ENDPOINTS": server.url,
        "OMP_NUM_THREADS": "1",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        **{name: str(tmp_path / name) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")},
    }
    program = Path(__file__).with_name("notebook.py")
    command = [python, program, ROOT / "examples/notebook.ipynb", tmp_path / "slow"]
    done = subprocess.run(
        [*map(str, command)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    connected, looked, _, trained, _ = seen["through"]
    assert connected == "'12 steps an epoch'"
    assert "torch.Size([8, 32, 32, 3]), torch.uint8" in " ".join(looked.split())
    assert [line.split(":")[0] for line in trained.splitlines()] == ["epoch 0", "epoch 1", "epoch 2"]
    assert seen["threads at the end"] == 0
    assert seen["threads after making it three times"] <= 1
    assert seen["interrupted"] == "KeyboardInterrupt"
    assert [line.split(":")[0] for line in seen["gone on"].splitlines()] == ["epoch 0", "epoch 1", "epoch 2"]
    assert seen["trained"] == planned
    assert seen["threads after closing"] == 0
