"""Ray Train from loader servers; goes on in mid-epoch where a run was stopped.

shardfeed serve 'data/train-{000000..000007}.tar' --fields 'jpg;png cls' --resize 64x64
python examples/train_ray.py tcp://127.0.0.1:7880 --checkpoints /shared/folder --workers 2
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from ray import train
from ray.train.torch import TorchTrainer, get_device, prepare_model
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


def on_each_worker(options: dict[str, Any]) -> None:
    """What each worker of Ray does; Ray has initialised torch.distributed, from which the data set has its rank."""
    device = get_device()
    model = prepare_model(network(options["classes"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = 0

    # Not in a DataLoader, and not through prepare_data_loader: the batches come as this rank's already.
    with RemoteDataset(options["endpoints"], batch_size=options["batch_size"]) as data:
        if (checkpoint := train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                saved = torch.load(Path(folder, "state.pt"), map_location=device)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            data.load_state_dict(saved["data"])  # the same on every rank, and good for any number of them
            steps = saved["steps"]
        for _ in range(data.epoch, options["epochs"]):
            for images, labels in data:
                loss = functional.cross_entropy(model(as_input(images, device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                if steps % options["save_every"] == 0:
                    report(loss.item(), steps, model, optimizer, data)


def report(loss: float, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer, data: RemoteDataset) -> None:
    """Report from every worker, as Ray asks for, and save from the first."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if train.get_context().get_world_rank() == 0:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "data": data.state_dict(),
                "steps": steps,
            }
            torch.save(state, Path(folder, "state.pt"))
            checkpoint = train.Checkpoint.from_directory(folder)
        train.report({"loss": loss, "steps": steps}, checkpoint=checkpoint)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoints", help="tcp://data-{0..3}:7880")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder or URL that all machines see")
    parser.add_argument("--workers", type=int, default=2, help="ranks")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8, help="rows on one rank")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=4, help="steps")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    trainer = TorchTrainer(
        on_each_worker,
        train_loop_config=vars(options),
        scaling_config=train.ScalingConfig(num_workers=options.workers, use_gpu=torch.cuda.is_available()),
        # A run of this name in this folder goes on from its last checkpoint, after a failure or started again.
        run_config=train.RunConfig(
            name="shardfeed",
            storage_path=str(options.checkpoints.absolute()),
            failure_config=train.FailureConfig(max_failures=3),
        ),
    )
    print(trainer.fit().metrics)


if __name__ == "__main__":
    main()
