"""Whatever comes in, only documented errors come out, soon, and in no more memory than its size calls for."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS

EXAMPLES = 50
ALLOWANCE = 4 << 20
"""Windows of readers, tables of decoders: what there is whatever the input's size."""

changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=12), st.booleans()), max_size=6)


def spoil(data: bytes, spoiling: list[tuple[int, bytes, bool]]) -> bytes:
    """Write over bytes, or put some in between."""
    for where, new, insert in spoiling:
        where %= len(data) + 1
        data = data[:where] + new + data[where if insert else where + len(new) :]
    return data


@pytest.mark.parametrize("name", list(TARGETS))
def test_arbitrary_bytes_raise_only_what_is_documented(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(st.binary(max_size=2_000))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()


@pytest.mark.parametrize("name", list(TARGETS))
def test_spoiled_input_raises_only_what_is_documented_and_takes_bounded_memory(name: str) -> None:
    @settings(max_examples=EXAMPLES)
    @given(st.sampled_from(SEEDS[name]), changes)
    def check(seed: bytes, spoiling: list[tuple[int, bytes, bool]]) -> None:
        data = spoil(seed, spoiling)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        TARGETS[name](data)
        assert tracemalloc.get_traced_memory()[1] - before < ALLOWANCE + 8 * len(data)

    for seed in SEEDS[name]:
        TARGETS[name](seed)  # what is spoiled was good, and what it imports is imported
    tracemalloc.start()
    try:
        check()
    finally:
        tracemalloc.stop()
