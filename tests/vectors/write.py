"""Writes ``order.json`` from the slow reference: ``python -m tests.vectors.write``. Words of 64 bits are hex."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tests.vectors import reference

PATH = Path(__file__).with_name("order.json")

WORDS = [(0, 0, 0, 0), (0, 0, 5, 1), (7, 3, 41, 2), ((1 << 64) - 1, (1 << 64) - 1, (1 << 127) + 9, 2)]
ORDERS: list[dict[str, Any]] = [
    {"block_sizes": [3, 2, 4], "seed": 0, "epoch": 0, "shuffle": True, "lanes": 2},
    {"block_sizes": [3, 2, 4], "seed": 0, "epoch": 1, "shuffle": True, "lanes": 2},
    {"block_sizes": [3, 2, 4], "seed": 1, "epoch": 0, "shuffle": True, "lanes": 9},
    {"block_sizes": [3, 2, 4], "seed": 0, "epoch": 0, "shuffle": False, "lanes": 1},
    {"block_sizes": [3, 2, 4], "seed": 0, "epoch": 0, "shuffle": False, "lanes": 4},
    {"block_sizes": [1], "seed": 9, "epoch": 9, "shuffle": True, "lanes": 1},
    {"block_sizes": [2, 1], "seed": 5, "epoch": 0, "shuffle": True, "lanes": 8},
    {"block_sizes": [5, 1, 4, 2, 8, 3], "seed": (1 << 64) - 1, "epoch": (1 << 64) - 1, "shuffle": True, "lanes": 6},
    {"block_sizes": [17] * 20 + [3], "seed": 42, "epoch": 2, "shuffle": True, "lanes": 16},
]
STEPS = [
    {"samples": 9, "consumed": 6, "batch_size": 2, "world_size": 2, "tail": "exact"},
    {"samples": 9, "consumed": 6, "batch_size": 2, "world_size": 2, "tail": "pad"},
    {"samples": 9, "consumed": 6, "batch_size": 2, "world_size": 2, "tail": "drop"},
    {"samples": 9, "consumed": 8, "batch_size": 1, "world_size": 3, "tail": "exact"},
    {"samples": 2, "consumed": 0, "batch_size": 5, "world_size": 1, "tail": "pad"},
    {"samples": 9, "consumed": 3, "batch_size": 3, "world_size": 2, "tail": "drop"},
]
KEYS = [("train-000000.tar", "000000"), ("train-000000.tar", "n01/a b"), ("a/b.tar", "schlüssel"), ("x.tar", "")]
ARRAYS: list[list[tuple[str, str, list[int], str, list[Any]]]] = [
    [],
    [("u1", "control", [3], "3B", [1, 2, 3])],
    [("i2", "x", [2, 3], "<6h", [1, -2, 3, 4, 5, -6]), ("f4", "", [], "<f", [1.5]), ("u8", "empty", [0, 4], "", [])],
    [("i8", "12345678", [8], "<8q", list(range(8)))],
]


def vectors() -> dict[str, Any]:
    """Return all test vectors."""
    return {
        "philox": [
            {
                **named(arguments),
                "words": [hexadecimal(word) for word, _ in zip(words(arguments), range(6), strict=False)],
            }
            for arguments in WORDS
        ],
        "order": [{**stated(case), "samples": reference.order(**case)} for case in ORDERS],
        "steps": [
            {**case, "ranks": [reference.step_rows(**case, rank=rank) for rank in range(case["world_size"])]}
            for case in STEPS
        ],
        "keyhash": [{"shard": s, "key": k, "hash": reference.keyhash(s.encode(), k.encode()).hex()} for s, k in KEYS],
        "digest": [
            {"epoch": hexadecimal(epoch), "rows": list(rows), "digest": f"{digest_of(epoch, rows):032x}"}
            for epoch, rows in ((0, [(0, 0)]), (1, [(0, 0)]), (2, [(5, 0), (6, 1), (7, 2)]), ((1 << 64) - 1, [(9, 3)]))
        ],
        "tenbin": [tenbin(arrays) for arrays in ARRAYS],
    }


def named(arguments: tuple[int, int, int, int]) -> dict[str, Any]:
    seed, epoch, identity, purpose = arguments
    return {
        "seed": hexadecimal(seed),
        "epoch": hexadecimal(epoch),
        "identity": hexadecimal(identity),
        "purpose": purpose,
    }


def stated(case: dict[str, Any]) -> dict[str, Any]:
    return {**case, "seed": hexadecimal(case["seed"]), "epoch": hexadecimal(case["epoch"])}


def words(arguments: tuple[int, int, int, int]) -> Any:
    return reference.philox_words(*arguments)


def digest_of(epoch: int, rows: list[tuple[int, int]]) -> int:
    hashes = [reference.keyhash(shard.encode(), key.encode()) for shard, key in KEYS]
    return reference.digest(epoch, [(position, hashes[number]) for position, number in rows])


def tenbin(arrays: list[tuple[str, str, list[int], str, list[Any]]]) -> dict[str, Any]:
    chunks: list[bytes] = []
    for code, name, shape, layout, values in arrays:
        chunks += [reference.header_chunk(code, name, shape), struct.pack(layout, *values)]
    stated = [{"dtype": c, "name": n, "shape": s, "values": v} for c, n, s, _, v in arrays]
    return {
        "arrays": stated,
        "multipart": [chunk.hex() for chunk in chunks],
        "single": reference.framed(chunks).hex(),
    }


def hexadecimal(number: int) -> str:
    return f"{number:#018x}"


if __name__ == "__main__":
    sections = [
        f"  {json.dumps(name)}: [\n    " + ",\n    ".join(json.dumps(case) for case in cases) + "\n  ]"
        for name, cases in vectors().items()
    ]
    PATH.write_text("{\n" + ",\n".join(sections) + "\n}\n")
