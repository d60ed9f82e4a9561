"""Makes a plan of many blocks for each line on stdin. Argument: the number of blocks."""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from shardfeed.plan import Cut, Plan, default_lanes

STEPS = 2000


def resident() -> int:
    """Return the most memory that the process had since `forget`, in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    blocks = int(sys.argv[1])
    sizes = np.random.default_rng(0).integers(30, 51, blocks).astype(np.uint16)
    print(json.dumps({"ready": True}), flush=True)
    for epoch, _ in enumerate(sys.stdin):
        gc.collect()
        forget()
        before, began = resident(), time.perf_counter()
        plan = Plan(sizes, seed=0, epoch=epoch, shuffle=True, lanes=default_lanes(blocks, shuffle=True))
        seconds, grown = time.perf_counter() - began, resident() - before
        cut = Cut(plan.samples, 64, rank=3, world_size=8)
        took, consumed = [], 0
        for _ in range(min(STEPS, cut.steps())):
            began = time.perf_counter()
            rows = cut.rows(consumed)
            assert rows is not None
            plan.locate(rows.positions)
            took.append(time.perf_counter() - began)
            consumed = rows.consumed
        print(json.dumps({"s": seconds, "MB": grown / 1e6, "us": 1e6 * statistics.median(took)}), flush=True)
        del plan


if __name__ == "__main__":
    main()
