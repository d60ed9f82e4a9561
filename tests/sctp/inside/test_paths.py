"""Several addresses for one server: with one path cut an epoch goes on; with all cut the peer is given up.

A network namespace is the other machine, and two pairs of virtual cards are the two paths to it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfeed import RemoteDataset
from shardfeed_wire.errors import BrokenChannelError
from shardfeed_wire.transport import Network
from tests.photographs import Photographs
from tests.sctp.inside.small import write_small_photographs
from tests.system.loaders import Loader, wait_until
from tests.wire.conformance_arena import LIMITS, soon

SAMPLES = 400
URL = "sctp://10.0.0.1,10.1.0.1:7881"
FAR = ("ip", "netns", "exec", "far")

pytestmark = pytest.mark.timeout(150)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


@pytest.fixture
def paths() -> Iterator[None]:
    """Lay two paths to the namespace ``far``, 10.0.0.0/24 and 10.1.0.0/24; there it is .1, here .2."""
    ip("netns add far")
    ip("-n far link set lo up")
    for number in range(2):
        ip(f"link add near{number} type veth peer name far{number} netns far")
        ip(f"-n far address add 10.{number}.0.1/24 dev far{number}")
        ip(f"address add 10.{number}.0.2/24 dev near{number}")
        ip(f"-n far link set far{number} up")
        ip(f"link set near{number} up")
    yield
    ip("netns del far")
    wait_until(lambda: not any(Path(f"/sys/class/net/near{number}").exists() for number in range(2)))


def cut(number: int) -> None:
    """Drop all that goes over a path, without a word to either side."""
    for words in (f"dev near{number}", f"dev far{number}"):
        where = [] if "near" in words else [*FAR]
        subprocess.run([*where, "tc", "qdisc", "add", *words.split(), "root", "netem", "loss", "100%"], check=True)


def test_with_one_path_cut_an_epoch_goes_on_with_nothing_lost(
    paths: None, photographs: Photographs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = write_small_photographs(tmp_path, photographs[:SAMPLES], count=4)
    options = ["--fields", "jpg;png cls", "--workers", "1", "--insecure", "--bind", URL]
    with Loader([*shards, *options], inside=FAR) as loader:
        assert loader.endpoints == [URL]
        with RemoteDataset(URL, batch_size=32) as dataset:
            assert sum(len(labels) for _, labels in dataset) == SAMPLES
            undisturbed = dataset.digest
        # One batch on its way at a time: most of the epoch is asked for when the path is gone.
        with RemoteDataset(URL, batch_size=32, prefetch_bytes=1) as dataset:
            for step, _ in enumerate(dataset):
                if step == 2:
                    cut(0)
            assert dataset.digest == undisturbed
            wait_until(lambda: "its address 10.0.0.1 cannot be reached" in caplog.text, 40, "the cut was noticed")
        assert "lost a server" not in caplog.text


def test_with_all_paths_cut_heartbeats_notice_that_the_peer_is_gone(paths: None) -> None:
    server = (
        "import asyncio\n"
        "from shardfeed_wire.transport import Limits, Network\n"
        "async def main():\n"
        f"    listener = Network().listen({URL!r}, Limits(frame_bytes=1 << 20))\n"
        "    print('ready', flush=True)\n"
        "    peer, chunks = await listener.receive()\n"
        "    await listener.send(peer, chunks)\n"
        "    await listener.receive()\n"
        "asyncio.run(main())\n"
    )

    async def act() -> None:
        network = Network()
        channel = await soon(network.connect(URL, LIMITS))
        try:
            await soon(channel.send([b"hello"]))
            await soon(channel.receive())
            cut(0)
            cut(1)
            with pytest.raises(BrokenChannelError, match=r"sctp://10\.0\.0\.1,10\.1\.0\.1:7881"):
                await soon(channel.receive(), 90)  # it sends nothing: only heartbeats can tell
        finally:
            channel.close()
            network.close()

    with subprocess.Popen([*FAR, sys.executable, "-c", server], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            asyncio.run(act())
        finally:
            process.kill()
