"""What a test may need of the machine, and what happens where that is missing.

A test calls ``require("guest", available, "why not")``: it is skipped with that reason, and listed at
the end of the run. ``SHARDFEED_REQUIRE``, a comma-separated list of the names below, or ``all`` of them
but the hardware, makes such a skip a failure: that is how CI notices that it stopped testing something.
"""

from __future__ import annotations

import os

import pytest

__all__ = ["CAPABILITIES", "HARDWARE", "is_required", "require"]

CAPABILITIES = {
    "chaos": "minutes of faults",
    "container": "a container engine, or what it takes to start one",
    "gpu": "a CUDA device",
    "guest": "a guest kernel, for transports that this kernel lacks",
    "jpegcrop": "shardfeed-jpegcrop, which scripts/install builds where it can",
    "peers": "an environment with other programs that speak the formats",
    "python": "a package that the tests use",
    "ray": "Ray, and a network of its own for a cluster",
}

HARDWARE = frozenset({"gpu"})
"""What no script can install: demanded by its own name only."""


def is_required(capability: str | None) -> bool:
    """Say whether a test that lacks ``capability`` (None: a plain skip) must fail."""
    asked = {name.strip() for name in os.environ.get("SHARDFEED_REQUIRE", "").split(",")} - {""}
    if unknown := asked - set(CAPABILITIES) - {"all"}:
        known = ", ".join(["all", *CAPABILITIES])
        raise pytest.UsageError(f"SHARDFEED_REQUIRE names {', '.join(sorted(unknown))}; there are {known}")
    return capability in asked or ("all" in asked and capability not in HARDWARE)


def require(capability: str, available: object, reason: str) -> None:
    """Skip the running test with ``reason`` unless ``available``; fail it where the capability is demanded."""
    if capability not in CAPABILITIES:
        raise ValueError(f"{capability!r} is not among the capabilities of tests/requirements.py: {list(CAPABILITIES)}")
    if available:
        return
    if is_required(capability):
        pytest.fail(f"SHARDFEED_REQUIRE demands {capability}, but: {reason}", pytrace=False)
    pytest.skip(f"[{capability}] {reason}")
