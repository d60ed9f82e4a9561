"""The bare loop: JPEGs in memory -> simplejpeg -> torch's antialiased resize -> batches, and nothing else.

Arguments: processes, batch size, and the shards. The pictures are shared out once, before any clock runs.
"""

from __future__ import annotations

import multiprocessing
import sys
import tarfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import simplejpeg
import torch

from rounds import answer


def read(shards: list[str]) -> list[tuple[bytes, int]]:
    found: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, field = member.name.split(".")
                stream = tar.extractfile(member)
                assert stream is not None
                found.setdefault(key, {})[field] = stream.read()
    return [(fields["jpg"], int(fields["cls"])) for fields in found.values()]


def decode(jpeg: bytes, out: torch.Tensor) -> None:
    picture = torch.from_numpy(simplejpeg.decode_jpeg(jpeg)).permute(2, 0, 1)[None]
    made = torch.nn.functional.interpolate(picture, (224, 224), mode="bilinear", antialias=True)
    out.copy_(made[0].permute(1, 2, 0))


def work(samples: list[tuple[bytes, int]], batch_size: int, link: Connection) -> None:
    torch.set_num_threads(1)
    link.send("ready")
    while (look := link.recv()) is not None:
        batches = []
        for start in range(0, len(samples), batch_size):
            part = samples[start : start + batch_size]
            rows = torch.empty((len(part), 224, 224, 3), dtype=torch.uint8)
            for (jpeg, _), row in zip(part, rows, strict=True):
                decode(jpeg, row)
            batches.append((rows.numpy() if look else None, [label for _, label in part]))
        link.send(batches)


def main() -> None:
    count, batch_size, shards = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    samples = read(shards)
    links = []
    for number in range(count):
        ours, theirs = multiprocessing.Pipe()
        multiprocessing.Process(target=work, args=(samples[number::count], batch_size, theirs), daemon=True).start()
        links.append(ours)
    for link in links:
        link.recv()

    def one_pass(look: bool) -> Iterator[tuple[Any, Any]]:
        for link in links:
            link.send(look)
        for link in links:
            yield from link.recv()

    answer(one_pass)
    for link in links:
        link.send(None)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    main()
