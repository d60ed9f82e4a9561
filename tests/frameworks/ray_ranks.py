"""Workers of Ray Train in which nobody initialises torch.distributed: each notes the labels of its batches.

``ray_ranks.py ENDPOINT FOLDER BATCH_SIZE WORKERS``; the variable NOTES says where (a line a batch goes to NOTES-RANK).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from shardfeed import RemoteDataset


def on_each_worker(options: dict[str, Any]) -> None:
    rank = train.get_context().get_world_rank()
    assert not torch.distributed.is_initialized()
    assert not {"RANK", "WORLD_SIZE"} & os.environ.keys()
    with (
        RemoteDataset(options["endpoint"], batch_size=options["batch_size"]) as data,
        Path(f"{options['notes']}-{rank}").open("w", encoding="utf-8") as notes,
    ):
        for _, labels in data:
            notes.write(json.dumps(labels.tolist()) + "\n")


def main(endpoint: str, folder: str, batch_size: str, workers: str) -> None:
    ray.init(log_to_driver=False)
    trainer = DataParallelTrainer(
        on_each_worker,
        train_loop_config={"endpoint": endpoint, "batch_size": int(batch_size), "notes": os.environ["NOTES"]},
        scaling_config=train.ScalingConfig(num_workers=int(workers)),
        run_config=train.RunConfig(storage_path=folder),
    )
    trainer.fit()


if __name__ == "__main__":
    main(*sys.argv[1:])
