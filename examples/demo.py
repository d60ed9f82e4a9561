"""From a data set to a trained network over loader servers: scikit-learn's 1,797 scanned digits.

Packs the digits into shards of PNG pictures and classes, starts two loader servers, and trains a small network from
them over the network. Exits with 1 if fewer than 95 % of the held-out digits are then told right.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from torch import Tensor, nn

from shardfeed import RemoteDataset
from webdataset import ShardWriter

EPOCHS = 12
HELD_OUT = 360
ASKED_ACCURACY = 0.95

CONFIGURATION = """\
bind = ["{endpoint}"]

[streams.train]
shards = "{folder}/train-{{000000..000003}}.tar"
fields = "png cls"
decode = "l8"

[streams.val]
shards = "{folder}/val-000000.tar"
fields = "png cls"
decode = "l8"
"""


def pack(folder: Path) -> None:
    """Write the digits, shuffled by a seed, as four shards to train with and one that is held out."""
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0)).tolist()
    train = len(order) - HELD_OUT
    for name, numbers, shards in (("train", order[:train], 4), ("val", order[train:], 1)):
        with ShardWriter(f"{folder}/{name}-%06d.tar", maxcount=-(-len(numbers) // shards)) as writer:
            for number in numbers:
                picture = (digits.images[number] * 255 / 16).astype("uint8")  # 8 x 8, from 0..16 to 0..255
                writer.write({"__key__": f"digit{number:04d}", "png": picture, "cls": int(digits.target[number])})


@contextmanager
def servers(folder: Path, count: int) -> Iterator[list[str]]:
    """Run loader servers on free ports of this machine; give their endpoints; stop them whatever happens."""
    processes: list[subprocess.Popen[bytes]] = []
    endpoints = []
    try:
        for number, port in enumerate(free_ports(count)):
            endpoints.append(f"tcp://127.0.0.1:{port}")
            configuration = folder / f"server-{number}.toml"
            configuration.write_text(CONFIGURATION.format(endpoint=endpoints[-1], folder=folder))
            command = [sys.executable, "-m", "shardfeed", "serve", "--config", str(configuration), "--workers", "1"]
            with configuration.with_suffix(".log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        yield endpoints
    except Exception:
        for log in sorted(folder.glob("server-*.log")):
            print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)
        raise
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def network() -> nn.Module:
    """Two convolutions and a linear layer; takes the batch as it arrives: uint8, (rows, 8, 8)."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * 4 * 4, 10),
    )


def as_input(pictures: Tensor) -> Tensor:
    """Turn uint8 pictures into floats around zero."""
    return pictures.float().div_(127.5).sub_(1.0)


def train(model: nn.Module, dataset: RemoteDataset, console: Console) -> tuple[int, float, float]:
    """Train for ``EPOCHS``; give the samples seen, the seconds it took, and those of them spent waiting for data."""
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    samples, waited, started = 0, 0.0, time.perf_counter()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as progress:
        bar = progress.add_task("", total=EPOCHS * len(dataset), epoch=0, loss=float("nan"))
        for epoch in range(dataset.epoch, EPOCHS):
            batches = iter(dataset)
            while True:
                asked = time.perf_counter()
                batch = next(batches, None)
                waited += time.perf_counter() - asked
                if batch is None:
                    break
                if stopped:
                    raise stopped[0]
                pictures, labels = batch
                loss = nn.functional.cross_entropy(model(as_input(pictures)), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                samples += len(labels)
                progress.update(bar, advance=1, epoch=epoch, loss=loss.item())
    return samples, time.perf_counter() - started, waited


@torch.no_grad()
def right(model: nn.Module, dataset: RemoteDataset) -> int:
    """Count the held-out digits that the network tells right."""
    model.eval()
    return sum(int((model(as_input(pictures)).argmax(1) == labels).sum()) for pictures, labels in dataset)


stopped: list[SystemExit] = []


def stop(number: int, _: object) -> None:
    """End the demo as soon as it can: what is raised inside a destructor is lost, and then raised again by the loop."""
    stopped.append(SystemExit(128 + number))
    raise stopped[0]


def main() -> int:
    """Run the demo; give the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)  # so that the servers are stopped then, too
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the servers want the other cores
    console = Console()
    with tempfile.TemporaryDirectory(prefix="shardfeed-demo-") as name:
        folder = Path(name)
        pack(folder)
        console.print(f"packed 1,797 scanned digits into {len(list(folder.glob('*.tar')))} shards")
        with servers(folder, 2) as endpoints:
            console.print(f"two loader servers at {' and '.join(endpoints)}")
            model = network()
            with RemoteDataset(endpoints, stream="train", batch_size=64, seed=0) as dataset:
                samples, seconds, waited = train(model, dataset, console)
            with RemoteDataset(endpoints, stream="val", batch_size=120, shuffle=False) as dataset:
                accuracy = right(model, dataset) / HELD_OUT
    console.print(f"held-out accuracy  {accuracy:.1%} of {HELD_OUT} digits (at least {ASKED_ACCURACY:.0%} is asked)")
    console.print(f"samples/s          {samples / seconds:,.0f} ({samples:,} in {seconds:.1f} s)")
    console.print(f"waited for data    {waited / seconds:.0%} of the training time")
    return 0 if accuracy >= ASKED_ACCURACY else 1


if __name__ == "__main__":
    sys.exit(main())
