"""A Hugging Face Trainer from loader servers; goes on in mid-epoch where a run was stopped.

shardfeed serve 'data/train-{000000..000007}.tar' --fields 'jpg;png cls' --resize 64x64
torchrun --nproc-per-node 2 examples/train_hf_trainer.py tcp://127.0.0.1:7880 --checkpoints run
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shardfeed import RemoteDataset


class Network(nn.Module):
    """A convolution and a linear layer, over pictures of any size; takes a batch's columns by name, gives the loss."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 16, classes)
        )

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(images.permute(0, 3, 1, 2).float().div_(255))
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


def by_name(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Name the columns as `Network.forward` does. A stream with named fields needs no such function."""
    images, labels = batch
    return {"images": images, "labels": labels}


class RemoteTrainer(Trainer):
    """A Trainer that takes the batches as they come: the data set shares them among the ranks already."""

    def get_train_dataloader(self) -> RemoteDataset:
        return self.train_dataset


class Bookmarks(TrainerCallback):
    """Puts the data set's place into each checkpoint."""

    def __init__(self, dataset: RemoteDataset) -> None:
        self.dataset = dataset

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.should_save:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            (folder / "bookmark.json").write_text(json.dumps(self.dataset.state_dict()))


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that has its bookmark: one without was not finished."""
    whole = [path.parent for path in folder.glob("checkpoint-*/bookmark.json")]
    return str(max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))) if whole else None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoints", help="tcp://data-{0..3}:7880")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder that all ranks see")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="rows on one rank")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=4, help="steps")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    training = TrainingArguments(
        output_dir=str(options.checkpoints),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,  # for the Trainer's own figures: the data set makes the batches
        save_steps=options.save_every,
        logging_steps=options.save_every,
        ignore_data_skip=True,  # the bookmark is where to go on; nothing is to be read again and thrown away
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
    )
    with RemoteDataset(options.endpoints, batch_size=options.batch_size, batch_transform=by_name) as train:
        trainer = RemoteTrainer(Network(options.classes), training, train_dataset=train, callbacks=[Bookmarks(train)])
        checkpoint = last_checkpoint(options.checkpoints)
        if checkpoint is not None:
            train.load_state_dict(json.loads(Path(checkpoint, "bookmark.json").read_text()))
        trainer.train(resume_from_checkpoint=checkpoint)
    # Or a thread of the process group, which is about to let go of the last tensors, aborts the process as it ends.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
