"""What every side's program shares: it gets ready, then goes through its samples once for each line on stdin.

It has no imports but numpy, for it also runs in the environments of other people's programs.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = ["answer", "digest"]

# One pass: batches of (rows, numbers of the samples), until the samples are over. The argument says whether
# the rows are looked at, which is never so while the clock counts.
Pass = Callable[[bool], Iterable[tuple[Any, Any]]]


def digest(numbers: Any) -> str:
    """Return a hash of the numbers of samples, in any order."""
    return hashlib.sha256(np.sort(np.asarray(numbers, np.int64)).tobytes()).hexdigest()


def answer(one_pass: Pass, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None) -> None:
    """Answer each line on stdin: ``{}`` with the time of a pass, ``{"keep": [numbers], "file": path}`` with rows.

    ``before`` and ``after`` are called around each pass, outside of its time.
    """
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if before is not None:
            before()
        said = _keep(one_pass, asked) if "file" in asked else _time(one_pass)
        if after is not None:
            after()
        print(json.dumps(said), flush=True)


def _time(one_pass: Pass) -> dict[str, Any]:
    numbers: list[Any] = []
    size = 0
    cpu, began = _cpu(), time.perf_counter()
    first = None
    for rows, of in one_pass(False):
        if first is None:
            first = time.perf_counter() - began
        numbers.append(of)
        size += 0 if rows is None else getattr(rows, "nbytes", 0)
    seconds = time.perf_counter() - began
    found = np.concatenate([np.asarray(each, np.int64).reshape(-1) for each in numbers])
    return {
        "seconds": seconds,
        "first": first,
        "cpu": _cpu() - cpu,
        "samples": len(found),
        "bytes": size,
        "digest": digest(found),
    }


def _keep(one_pass: Pass, asked: dict[str, Any]) -> dict[str, Any]:
    wanted = set(asked["keep"])
    kept: dict[str, Any] = {}
    for rows, of in one_pass(True):
        for row, number in zip(rows, np.asarray(of).reshape(-1).tolist(), strict=True):
            if number in wanted:
                kept[str(number)] = np.array(row)
    np.savez(asked["file"], **kept)
    return {"kept": len(kept)}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
