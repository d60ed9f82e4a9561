"""Memory of messages that were dropped serves the next ones, unless the user has said what malloc is to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MESSAGE, AT_ONCE, ROUNDS = 10_000_000, 4, 6

RECEIVING = f"""
import asyncio, resource
from shardfeed_wire.transport import Limits, Network

async def send(listener):
    peer, _ = await listener.receive()
    message = bytes({MESSAGE})
    for _ in range({AT_ONCE * ROUNDS}):
        await listener.send(peer, [message])

async def main():
    network, limits = Network(), Limits(frame_bytes={2 * MESSAGE})
    listener = network.listen("tcp://127.0.0.1:0", limits)
    channel = await network.connect(listener.url, limits)
    await channel.send([b"go"])
    sending = asyncio.create_task(send(listener))
    for number in range({ROUNDS}):
        if number == {ROUNDS // 2}:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [await channel.receive() for _ in range({AT_ONCE})]
        del held
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    await sending
    channel.close()
    await listener.close()
    network.close()

asyncio.run(main())
"""


@pytest.mark.parametrize(("said", "kept"), [({}, True), ({"MALLOC_TOP_PAD_": "131072"}, False)])
def test_pages_of_a_message_are_used_again_where_the_user_has_not_said_otherwise(
    said: dict[str, str], kept: bool
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    received = subprocess.run(
        [sys.executable, "-c", RECEIVING], env=environment | said, capture_output=True, text=True, check=True
    )
    pages = (ROUNDS - ROUNDS // 2) * AT_ONCE * MESSAGE // os.sysconf("SC_PAGE_SIZE")
    assert (int(received.stdout) < pages / 4) == kept
