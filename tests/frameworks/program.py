"""Runs an example, notes the labels of each training step, and ends in a step as a kill would.

The variables EXAMPLE (the file), NOTES (a line a step goes to NOTES-RANK) and END_IN_STEP (0: never) say what; the
arguments are the example's, because Lightning starts its other ranks with the arguments of the first.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

loss_of = functional.cross_entropy
steps = 0


def cross_entropy(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
    global steps
    if torch.is_grad_enabled():
        steps += 1
        if steps == int(os.environ["END_IN_STEP"]):
            os._exit(17)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        with Path(f"{os.environ['NOTES']}-{rank}").open("a", encoding="utf-8") as file:
            file.write(json.dumps(labels.tolist()) + "\n")
    return loss_of(logits, labels, **options)


def note_losses() -> None:
    functional.cross_entropy = cross_entropy


note_losses()
if Path(os.environ["EXAMPLE"]).stem == "train_ray":  # whose steps are in processes that Ray starts
    import ray

    variables = {name: os.environ[name] for name in ("NOTES", "END_IN_STEP")}
    ray.init(runtime_env={"worker_process_setup_hook": note_losses, "env_vars": variables}, log_to_driver=False)
example = Path(os.environ["EXAMPLE"])
exec(compile(example.read_text(), example, "exec"))  # here, for runpy would name the example as what Lightning starts
