"""The test vectors: what other implementations are held to holds for this one, on every platform and version."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from shardfeed.digest import digest_rows
from shardfeed.plan import Cut, Plan
from shardfeed_wire.philox import Purpose, permutation, philox, unit_interval
from shardfeed_wire.tenbin import decode_buffer, decode_list, encode_buffer, encode_list
from tests.vectors import reference
from tests.vectors.write import KEYS, PATH, vectors

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(PATH.read_text())


def cases(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", VECTORS[kind], ids=str)


def test_the_vectors_are_what_the_reference_gives() -> None:
    assert json.loads(json.dumps(vectors())) == VECTORS


@cases("philox")
def test_random_words(case: dict[str, Any]) -> None:
    seed, epoch, identity = (int(case[name], 16) for name in ("seed", "epoch", "identity"))
    words = philox(seed, epoch, identity, Purpose(case["purpose"])).random_raw(len(case["words"]))
    assert [f"{word:#018x}" for word in words.tolist()] == case["words"]


def test_a_unit_interval_is_the_upper_53_bits_of_a_word() -> None:
    drawn = unit_interval(philox(7, 3, 41, Purpose.AUGMENTATION))
    assert drawn == (int(VECTORS["philox"][2]["words"][0], 16) >> 11) / (1 << 53)


def test_equal_words_keep_their_order_in_a_permutation() -> None:
    class Equal:
        def random_raw(self, size: int) -> np.ndarray:
            return np.array([5, 1, 5, 1, 5][:size], np.uint64)

    assert permutation(Equal(), 5).tolist() == [1, 3, 0, 2, 4]  # type: ignore[arg-type]


@cases("order")
def test_samples_at_positions(case: dict[str, Any]) -> None:
    plan = Plan(
        np.array(case["block_sizes"], np.uint16),
        seed=int(case["seed"], 16),
        epoch=int(case["epoch"], 16),
        shuffle=case["shuffle"],
        lanes=case["lanes"],
    )
    block, index = plan.locate(np.arange(plan.samples))
    assert [list(sample) for sample in zip(block.tolist(), index.tolist(), strict=True)] == case["samples"]


@cases("steps")
def test_rows_of_a_step(case: dict[str, Any]) -> None:
    for rank, expected in enumerate(case["ranks"]):
        rows = Cut(case["samples"], case["batch_size"], rank, case["world_size"], case["tail"]).rows(case["consumed"])
        found = rows and [list(row) for row in zip(rows.positions.tolist(), rows.padding.tolist(), strict=True)]
        assert found == expected


@cases("digest")
def test_digests(case: dict[str, Any]) -> None:
    positions = np.array([position for position, _ in case["rows"]], np.int64)
    hashes = [bytes.fromhex(VECTORS["keyhash"][number]["hash"]) for _, number in case["rows"]]
    found = digest_rows(int(case["epoch"], 16), positions, np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 16))
    assert f"{found:032x}" == case["digest"]


@cases("tenbin")
def test_bytes_of_arrays(case: dict[str, Any]) -> None:
    arrays = [np.array(a["values"], f"<{a['dtype']}").reshape(a["shape"]) for a in case["arrays"]]
    names = [array["name"] for array in case["arrays"]]
    assert [bytes(chunk).hex() for chunk in encode_list(arrays, names)] == case["multipart"]
    assert encode_buffer(arrays, names).hex() == case["single"]
    for decoded, found in (
        decode_list([bytes.fromhex(chunk) for chunk in case["multipart"]], infos=True),
        decode_buffer(bytes.fromhex(case["single"]), infos=True),
    ):
        assert found == names
        assert [(a.dtype, a.shape, a.tolist()) for a in decoded] == [(a.dtype, a.shape, a.tolist()) for a in arrays]


def test_the_keys_of_the_vectors_hash_as_written() -> None:
    for case, (shard, key) in zip(VECTORS["keyhash"], KEYS, strict=True):
        assert case["hash"] == reference.keyhash(shard.encode(), key.encode()).hex()
