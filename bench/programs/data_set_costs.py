"""What a data set of many samples costs before the first batch. Argument: the number of samples."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from make_plan import forget, resident
from shardfeed.plan import Plan, default_lanes
from webdataset.manifest import Manifest, cut_blocks

A_SHARD = 10_000
SAMPLE_BYTES = 100 * 1024


def manifest_of(samples: int) -> Manifest:
    """Number the samples of shards of 10,000 samples of 100 KiB, as `shardfeed index` would, without shards."""
    counts = np.full(-(-samples // A_SHARD), A_SHARD, np.int64)
    counts[-1] = samples - A_SHARD * (len(counts) - 1)
    lengths = np.full(samples, SAMPLE_BYTES, np.uint64)
    cuts = {int(count): cut_blocks(lengths[: int(count)], 4 << 20) for count in set(counts.tolist())}
    starts = np.arange(A_SHARD, dtype=np.uint64) * np.uint64(SAMPLE_BYTES)
    return Manifest(
        [f"train-{number:06d}.tar" for number in range(len(counts))],
        root="/data",
        block_bytes=4 << 20,
        sizes=counts * SAMPLE_BYTES + 1024,
        mtimes=np.zeros(len(counts), np.int64),
        digests=np.random.default_rng(0).integers(0, 256, (len(counts), 16), np.uint8),
        shard_samples=counts,
        block_sizes=np.concatenate([cuts[count] for count in counts.tolist()]),
        starts=np.concatenate([starts[:count] for count in counts.tolist()]),
        lengths=lengths,
    )


def measure(samples: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.ten"
        manifest_of(samples).save(path)
        began = time.perf_counter()
        manifest = Manifest.load(path)
        loading = time.perf_counter() - began
        on_disk = path.stat().st_size
        forget()
        before, began = resident(), time.perf_counter()
        lanes = default_lanes(len(manifest.block_sizes), shuffle=True)
        plan = Plan(manifest.block_sizes, seed=0, epoch=0, shuffle=True, lanes=lanes)
        planning, memory = time.perf_counter() - began, resident() - before
        began = time.perf_counter()
        plan.locate(np.arange(64))
        first = time.perf_counter() - began
    return {
        "manifest on a server's disk, MB": on_disk / 1e6,
        "manifest sent to a client, MB": 2 * len(manifest.block_sizes) / 1e6,
        "opening a manifest, s": loading,
        "planning an epoch, s": planning,
        "memory of planning, MB": max(0, memory) / 1e6,
        "finding the first step, s": first,
    }


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure(int(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    main()
