"""Run atheris on one target for some seconds: ``python -m tests.fuzz.fuzz_target NAME CORPUS SECONDS``.

It ends with 0 where nothing was found; libFuzzer's limits on memory and time make a hang or a hunger a finding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["shardfeed_wire", "webdataset", "shardfeed_server", "shardfeed", "msgspec"]):
    from tests.fuzz.targets import SEEDS, TARGETS


def main() -> None:
    name, corpus, seconds = sys.argv[1:]
    for number, seed in enumerate(SEEDS[name]):
        (Path(corpus) / f"seed-{number}").write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-max_len=8192",
            f"-artifact_prefix={corpus}/found-",
            corpus,
        ],
        TARGETS[name],
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
