"""PyTorch Lightning from loader servers; goes on in mid-epoch where a run was stopped.

shardfeed serve 'data/train-{000000..000007}.tar' --fields 'jpg;png cls' --resize 64x64
python examples/train_lightning.py tcp://127.0.0.1:7880 --checkpoints run --devices 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional

from shardfeed import RemoteDataset


class Classifier(LightningModule):
    """A convolution and a linear layer, over pictures of any size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 16, classes)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = functional.cross_entropy(self.layers(images.permute(0, 3, 1, 2).float().div_(255)), labels)
        self.log("loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoints", help="tcp://data-{0..3}:7880")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder that all ranks see")
    parser.add_argument("--devices", type=int, default=1, help="ranks on this machine")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="rows on one rank")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=4, help="steps")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    saving = ModelCheckpoint(
        options.checkpoints, filename="{step}", every_n_train_steps=options.save_every, save_top_k=-1, save_last=True
    )
    trainer = Trainer(
        max_epochs=options.epochs,
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        callbacks=[saving],
        logger=False,
    )
    last = options.checkpoints / "last.ckpt"
    with RemoteDataset(options.endpoints, batch_size=options.batch_size) as train:
        # Not inside a DataLoader: so Lightning counts its steps, and puts its bookmark into every checkpoint.
        trainer.fit(Classifier(options.classes), train, ckpt_path=str(last) if last.exists() else None)


if __name__ == "__main__":
    main()
