"""Plain DistributedDataParallel from loader servers; goes on in mid-epoch where a run was stopped.

shardfeed serve 'data/train-{000000..000007}.tar' --fields 'jpg;png cls' --resize 64x64
torchrun --nproc-per-node 2 examples/train_ddp.py tcp://127.0.0.1:7880 --checkpoints run
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from shardfeed import RemoteDataset


def network(classes: int) -> nn.Module:
    """A convolution and a linear layer, over pictures of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 16, classes)
    )


def as_input(images: Tensor, device: torch.device) -> Tensor:
    """Turn uint8 (rows, height, width, 3) into floats (rows, 3, height, width)."""
    return images.to(device).permute(0, 3, 1, 2).float().div_(255)


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
    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    checkpoint = options.checkpoints / "last.pt"

    model = DistributedDataParallel(network(options.classes).to(device))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = 0

    with RemoteDataset(options.endpoints, batch_size=options.batch_size) as train:
        if checkpoint.exists():
            saved = torch.load(checkpoint, map_location=device)
            model.module.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            train.load_state_dict(saved["train"])  # the same on every rank, and good for any number of them
            steps = saved["steps"]
        for epoch in range(train.epoch, options.epochs):
            for images, labels in train:
                loss = functional.cross_entropy(model(as_input(images, device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                if steps % options.save_every == 0 and distributed.get_rank() == 0:
                    state = {
                        "model": model.module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "train": train.state_dict(),
                        "steps": steps,
                    }
                    options.checkpoints.mkdir(parents=True, exist_ok=True)
                    torch.save(state, checkpoint.with_suffix(".new"))
                    checkpoint.with_suffix(".new").replace(checkpoint)
            if distributed.get_rank() == 0:
                print(f"epoch {epoch}: step {steps}, loss {loss.item():.3f}", flush=True)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
