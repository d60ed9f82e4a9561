"""SCTP holds to the contracts of a transport, on asyncio's event loop and on the server's."""

from __future__ import annotations

import pytest
import uvloop

from tests.wire.conformance import CHECKS, Check, run

pytestmark = pytest.mark.timeout(150)  # one core, shared with the host, and no help with checksums

LONG = {"messages_of_any_size_arrive", "thousands_of_small_messages_arrive", "a_message_of_300_mb_arrives"}
"""Checks of what no event loop changes; asyncio's is enough."""


@pytest.fixture(scope="session", autouse=True)
def process_wide_pipe() -> None:
    """Let uvloop open the pipe that it keeps for the life of the process."""
    uvloop.new_event_loop().close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Check) -> None:
    run(check, lambda: "sctp://127.0.0.1:0")


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check.__name__ not in LONG], ids=lambda check: check.__name__
)
def test_conformance_on_the_server_s_event_loop(check: Check) -> None:
    run(check, lambda: "sctp://127.0.0.1:0", uvloop.new_event_loop)
