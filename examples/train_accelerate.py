"""Hugging Face Accelerate from loader servers; goes on in mid-epoch where a run was stopped.

shardfeed serve 'data/train-{000000..000007}.tar' --fields 'jpg;png cls' --resize 64x64
accelerate launch --num-processes 2 examples/train_accelerate.py tcp://127.0.0.1:7880 --checkpoints run
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional

from shardfeed import RemoteDataset


def network(classes: int) -> nn.Module:
    """A convolution and a linear layer, over pictures of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 16, classes)
    )


def as_input(images: Tensor, device: torch.device) -> Tensor:
    """Turn uint8 (rows, height, width, 3) into floats (rows, 3, height, width)."""
    return images.to(device).permute(0, 3, 1, 2).float().div_(255)


def save(accelerator: Accelerator, folder: Path, steps: int) -> None:
    """Save everything, the place in the data too, under a name that a run which is killed leaves whole or out."""
    unfinished = folder / "unfinished"
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        unfinished.rename(folder / f"step-{steps:08d}")


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
    accelerator = Accelerator()
    model = network(options.classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)  # not the data set, which knows its rank

    with RemoteDataset(options.endpoints, batch_size=options.batch_size) as train:
        accelerator.register_for_checkpointing(train)  # so that save_state and load_state take its bookmark along
        steps = 0
        if saved := sorted(options.checkpoints.glob("step-*")):
            accelerator.load_state(str(saved[-1]))
            steps = int(saved[-1].name.removeprefix("step-"))
        for epoch in range(train.epoch, options.epochs):
            for images, labels in train:
                loss = functional.cross_entropy(
                    model(as_input(images, accelerator.device)), labels.to(accelerator.device)
                )
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                steps += 1
                if steps % options.save_every == 0:
                    save(accelerator, options.checkpoints, steps)
            accelerator.print(f"epoch {epoch}: step {steps}, loss {loss.item():.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
