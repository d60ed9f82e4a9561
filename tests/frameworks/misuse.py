"""What people write with accelerate and a Trainer, and what comes of it.

misuse.py URL SAID: each rank writes what each attempt gave, or the ConfigError that it raised, to SAID-RANK.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from shardfeed import ConfigError, RemoteDataset

url, notes = sys.argv[1:]
said = {}


def attempt(name: str, write: Callable[[RemoteDataset], Any]) -> None:
    with RemoteDataset(url, batch_size=8) as dataset:
        try:
            said[name] = write(dataset)
        except ConfigError as error:
            said[name] = str(error)


def labels(loader: Any) -> list[int]:
    return [label for _, batch in loader for label in batch.tolist()]


def state_of_prepared(dataset: RemoteDataset) -> Any:
    next(iter(accelerator.prepare(DataLoader(dataset, batch_size=None))))
    return dataset.state_dict()


def state_after_prepared(dataset: RemoteDataset) -> Any:
    next(iter(accelerator.prepare(DataLoader(dataset, batch_size=None))))
    next(iter(dataset))
    return dataset.state_dict()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, **columns: Any) -> Any:
        raise AssertionError(f"a batch came: {list(columns)}")


def train(dataset: RemoteDataset) -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, use_cpu=True, report_to=[], disable_tqdm=True)
        Trainer(Network(), arguments, train_dataset=dataset).train()


accelerator = Accelerator(cpu=True)
attempt("prepared", lambda dataset: labels(accelerator.prepare(DataLoader(dataset, batch_size=None))))
attempt(
    "prepared, with workers",
    lambda dataset: labels(accelerator.prepare(DataLoader(dataset, batch_size=None, num_workers=1))),
)
attempt("prepared as samples", lambda dataset: labels(accelerator.prepare(DataLoader(dataset))))
attempt("state of prepared", state_of_prepared)
attempt("state after prepared", state_after_prepared)
attempt("trainer", train)
accelerator.dataloader_config = DataLoaderConfiguration(dispatch_batches=False)
attempt("prepared, not dispatched", lambda dataset: labels(accelerator.prepare(DataLoader(dataset, batch_size=None))))
Path(f"{notes}-{os.environ['RANK']}").write_text(json.dumps(said))
accelerator.end_training()
