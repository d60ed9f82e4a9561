"""Small samples: a class and a text of 100 bytes, in large batches, where each sample's own cost is what counts."""

from __future__ import annotations

from contextlib import ExitStack

from bench.data import texts
from bench.environments import WEBDATASET
from bench.results import Result, main
from bench.sides import CORES, NOTHING_KEPT, Program, alternate, opened, same_rows
from tests.system.loaders import Loader

__all__ = ["measure"]

BATCH = 1024


def measure(rounds: int = 5, *, samples: int = 65_536, peers: bool = True) -> Result:
    """Compare the whole path with webdataset and a DataLoader."""
    shards = texts(samples)
    size = min(BATCH, samples // CORES)
    with ExitStack() as stack:
        server = stack.enter_context(Loader.of(shards, "--fields", "txt cls", "--workers", str(CORES), *NOTHING_KEPT))
        sides = opened(
            stack,
            [
                Program("shardfeed", "ours", (server.url, size, "tcp")),
                Program("webdataset", "webdataset_texts", (CORES, size, *shards), WEBDATASET),
            ],
            peers=peers,
        )
        for other in sides[1:]:
            same_rows(sides[0], other, range(0, samples, max(1, samples // 64)))
        outcomes = alternate(sides, rounds, samples)
    result = Result(
        "small",
        f"{samples:,} samples of a class and a text of 100 bytes, in batches of {size:,}; "
        f"{CORES} worker processes on both sides",
        "samples/s",
    )
    for side, said in zip(sides, outcomes, strict=True):
        result.add(side.name, [each["samples"] / each["seconds"] for each in said])
    result.ratio("shardfeed", "webdataset", at_least=5.0)
    return result


if __name__ == "__main__":
    main(measure)
