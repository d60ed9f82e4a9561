"""The front outlives its own defects, and never falls silent: a listener that fails ends the server."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardfeed_server.conduct import USUAL_PATIENCE
from shardfeed_server.service import REQUEST_LIMITS, Service
from shardfeed_wire.errors import BrokenChannelError
from shardfeed_wire.messages import PROTOCOL_VERSION, Hello, Refused, pack, unpack
from shardfeed_wire.transport import Network
from tests.photographs import write_shards
from tests.wire.conformance_arena import soon

HELLO = pack(Hello(version=PROTOCOL_VERSION, job="front"), ())

FAILING = """
import sys
from shardfeed_server.config import ServerConfig, StreamConfig
from shardfeed_server.serve import Observer, serve
from shardfeed_wire.transport import register
from shardfeed_wire.zeromq import ZeroMQ

class Failing(ZeroMQ):
    def listen(self, url, limits):
        listener = super().listen(url, limits)
        receive = listener.receive

        async def fail():
            await receive()
            raise ArithmeticError("what nobody thought of")

        listener.receive = fail
        return listener

register("tcp", Failing)
if __name__ == "__main__":
    stream = StreamConfig(shards=sys.argv[1], fields="cls")
    config = ServerConfig(streams={"default": stream}, bind=("tcp://127.0.0.1:0",), workers=1, http="off")
    serve(config, Observer(ready=lambda serving: print(serving.endpoints[0], flush=True)), end_with=0)
"""


async def say_hello(channel: Any) -> Any:
    await soon(channel.send(HELLO))
    return unpack(await soon(channel.receive()))[0]


def test_a_message_at_which_the_front_fails_takes_nothing_from_others_and_is_logged_some_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act() -> None:
        network = Network()
        service = Service(
            "front",
            software="test",
            send_bytes=1 << 20,
            queue_requests=10,
            answer_cache_bytes=0,
            lending=None,
            patience=USUAL_PATIENCE,
        )
        listener = network.listen("tcp://127.0.0.1:0", REQUEST_LIMITS)
        serving = asyncio.create_task(service.serve(listener))
        guilty = await soon(network.connect(listener.url, REQUEST_LIMITS))
        other = await soon(network.connect(listener.url, REQUEST_LIMITS))
        try:
            service.say_progress(object())  # type: ignore[arg-type] - the defect: no message can hold it
            with pytest.raises(BrokenChannelError):
                for _ in range(100):
                    await soon(guilty.send(HELLO))
                await soon(guilty.receive())
            service.say_progress("indexing")
            assert await say_hello(other) == Refused(request=0, reason="indexing", message="indexing")
            assert not serving.done()
        finally:
            guilty.close()
            other.close()
            await listener.close()
            await soon(serving)
            await service.close()
            network.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(act())
    defects = [record for record in caplog.records if "this is a defect" in record.getMessage()]
    assert 1 <= len(defects) <= 25
    assert defects[0].exc_info is not None
    assert "the front fails at what it sends" in caplog.text


def test_a_listener_that_fails_ends_its_server_loudly(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [("a", {"cls": b"1"})], 1)

    async def ask(url: str) -> None:
        network = Network()
        channel = await soon(network.connect(url, REQUEST_LIMITS))
        await soon(channel.send(HELLO))
        channel.close()
        network.close()

    with subprocess.Popen(
        [sys.executable, "-c", FAILING, str(shards[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            asyncio.run(ask(url))
            assert server.wait(60) == 1
        finally:
            server.kill()
            _, said = server.communicate()
    assert "ArithmeticError: what nobody thought of" in said
    assert f"The listener on {url} failed, and the server ends with it" in said
