"""Decode-bound: photographs to uint8 batches at the trainer, all cores, against the loaders that people use."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import photographs
from bench.environments import DALI, WEBDATASET
from bench.results import Result, main
from bench.sides import CORES, NOTHING_KEPT, Program, alternate, opened, rows_apart
from tests.system.loaders import Loader

__all__ = ["measure"]

BATCH = 64
LEVELS = {"bare loop": (0, 0.0), "webdataset": (2, 0.1), "DALI": (24, 0.3)}
"""How far a side's pixels may be from ours, at most and on average. DALI turns YCbCr into RGB in its own way."""


def measure(rounds: int = 5, *, samples: int = 2048, peers: bool = True) -> Result:
    """Compare the whole path with webdataset and a DataLoader, with DALI, and with a bare loop of decoding."""
    shards = photographs(samples)
    size = min(BATCH, samples // CORES)
    looked_at = range(0, samples, max(1, samples // 64))
    with ExitStack() as stack:
        server = stack.enter_context(
            Loader.of(shards, "--resize", "224x224", "--fields", "jpg cls", "--workers", str(CORES), *NOTHING_KEPT)
        )
        ours, *others = sides = opened(
            stack,
            [
                Program("shardfeed", "ours", (server.url, size, "tcp")),
                Program("bare loop", "bare_decode", (CORES, size, *shards)),
                Program("webdataset", "webdataset_loader", (CORES, size, *shards), WEBDATASET),
                Program("DALI", "dali_loader", (CORES, size, *shards), DALI),
            ],
            peers=peers,
        )
        apart = {side.name: rows_apart(ours, side, looked_at, *LEVELS[side.name]) for side in others}
        outcomes = alternate(sides, rounds, samples)
    result = Result(
        "decode",
        f"{samples:,} photographs (JPEG 500 x 375, quality 95) -> RGB -> 224 x 224, bilinear, antialiased -> "
        f"uint8 batches of {size}; {CORES} processes or threads decode on every side",
        "samples/s",
    )
    for side, said in zip(sides, outcomes, strict=True):
        result.add(side.name, [each["samples"] / each["seconds"] for each in said])
    result.ratio("shardfeed", "webdataset", at_least=2.0)
    result.ratio("shardfeed", "DALI", at_least=2.7)
    result.ratio("shardfeed", "bare loop", at_least=0.92)
    for name, (most, mean) in apart.items():
        result.notes.append(
            f"Pixels of {name} are at most {most} levels from shardfeed's, on average {mean:.3f} "
            f"({len(looked_at)} photographs)."
        )
    return result


if __name__ == "__main__":
    main(measure)
