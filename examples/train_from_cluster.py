"""Train on scanned digits from the loader servers of a cluster; the images, Kubernetes and Slurm run this.

`python train_from_cluster.py tcp://loader:7880 --epochs 12`. One line of JSON an epoch says what came: the samples, how
many of them were different ones, and the digest, which is equal for any servers and ranks. With RANK and WORLD_SIZE,
as torchrun and `deploy/slurm` set them, several trainers share an epoch and average their gradients. SIGTERM lets the
epoch under way be the last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time

import torch
from torch import distributed, nn

from shardfeed import RemoteDataset


def network() -> nn.Module:
    """Take the batch as it arrives: uint8, (rows, 8, 8)."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10),
    )


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, dataset: RemoteDataset) -> dict[str, object]:
    """Train for one epoch; give what came in it on this rank."""
    began, epoch, loss, samples, seen = time.perf_counter(), dataset.epoch, torch.zeros(()), 0, set()
    for pictures, labels, info in dataset:
        loss = nn.functional.cross_entropy(model(pictures.float().div_(127.5).sub_(1.0)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows = zip(info.shards, info.keys, info.valid.tolist(), strict=True)
        seen.update((shard, key) for shard, key, good in rows if good)
        samples += int(info.valid.sum())
    seconds = round(time.perf_counter() - began, 3)
    return {
        "epoch": epoch,
        "samples": samples,
        "different": len(seen),
        "digest": dataset.digest,
        "loss": round(float(loss.detach()), 4),
        "seconds": seconds,
    }


def anywhere(told_to_stop: list[int]) -> bool:
    """Say whether any rank was told to stop: all must end after the same epoch."""
    told = torch.tensor(len(told_to_stop))
    if distributed.is_initialized():
        distributed.all_reduce(told)
    return bool(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = os.environ.get("SHARDFEED_ENDPOINTS", "").split()  # as deploy/slurm sets it
    parser.add_argument("endpoints", nargs="*", default=asked, help="the loader servers, such as tcp://loader:7880")
    parser.add_argument("--stream", default="train")
    parser.add_argument("--curve", metavar="FILE", help="this trainer's keys, made by `shardfeed keygen`")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    given = parser.parse_args()

    told_to_stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told_to_stop.append(number))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model: nn.Module = network()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    with RemoteDataset(
        given.endpoints,
        stream=given.stream,
        batch_size=given.batch_size,
        curve=given.curve,
        info=True,
        connect_timeout=120,
    ) as dataset:
        while dataset.epoch < given.epochs and not anywhere(told_to_stop):
            print(json.dumps(train_epoch(model, optimizer, dataset)), flush=True)
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
