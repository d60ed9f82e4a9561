"""Tensorcom's own Connection receives what our server sends, and ours what it sends: all schemes, both framings."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from shardfeed import PlainDataset, PlainSender, RemoteDataset
from tests.cli.command import started
from tests.interop.environments import run
from tests.photographs import Photographs, write_shards

pytestmark = [pytest.mark.peers, pytest.mark.timeout(240)]

PROGRAMS = Path(__file__).parent / "programs"
PATIENCE = 60.0
SERVER = """\
bind = "tcp://127.0.0.1:0"
http = "off"
workers = 1

[streams.train]
shards = "train-{000000..000001}.tar"
fields = { image = "jpg", label = "cls" }
transforms = ["resize=48x64"]
"""
OUTPUT = """
[[outputs]]
url = "SCHEME://127.0.0.1:0"
framing = "FRAMING"
batch_size = 8
drop_last = true
seed = 3
shuffle = SHUFFLE
infos = true
"""


def described(batch: Any) -> list[Any]:
    """Say of a batch what the peer's program says."""
    arrays = [column.numpy() for column in batch]
    return [[one.dtype.name, list(one.shape), hashlib.sha256(one.tobytes()).hexdigest()] for one in arrays]


def said(text: str) -> list[list[Any]]:
    return [json.loads(line)[1] for line in text.splitlines()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def sending(peer: Path, url: str, framing: str, pause: float) -> Iterator[None]:
    """Let Tensorcom send numbered batches for as long as the block lasts."""
    program = [peer, "-W", "ignore", PROGRAMS / "tensorcom_send.py", url, framing, pause]
    with subprocess.Popen([*map(str, program)], cwd="/", stdin=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.kill()


def test_tensorcom_receives_what_a_server_pushes_and_publishes_in_both_framings(
    peer: Path, photographs: Photographs, tmp_path: Path
) -> None:
    samples = [(key, {"jpg": jpeg, "cls": b"%d" % label}) for key, jpeg, label in photographs[:20]]
    write_shards(tmp_path, samples, 2)
    kinds = [(scheme, framing) for scheme in ("zrpush", "zpub") for framing in ("multipart", "single")]
    tables = ""
    for scheme, framing in kinds:
        # Which epochs a subscriber gets is chance, so what is published is the same in all of them.
        shuffle = "true" if scheme == "zrpush" else "false"
        tables += OUTPUT.replace("SCHEME", scheme).replace("FRAMING", framing).replace("SHUFFLE", shuffle)
    (tmp_path / "shardfeed.toml").write_text(SERVER + tables)
    with started("serve", "--config", tmp_path / "shardfeed.toml", log=tmp_path / "log") as server:
        lines = server.wait_for(r"^pushing train to (\S+): batches of 8, framing (\w+)", len(kinds))
        urls = {framing + url.partition("://")[0]: url for url, framing in lines}
        arguments: list[object] = []
        for scheme, framing in kinds:
            url = urls[framing + scheme].replace("push", "pull").replace("pub", "sub")
            arguments += [url, framing, 3, "image,label"]
        got = said(run(peer, "-W", "ignore", PROGRAMS / "tensorcom_receive.py", *arguments))
        pushed, published = [sent_by(server.endpoint(), shuffle=shuffle) for shuffle in (True, False)]
    assert got[:3] == pushed[:3]
    assert got[3:6] == pushed[:3]
    assert len(got) == 12
    assert published[:2] == published[2:] != pushed[:2]
    for batch in got[6:]:
        assert batch in published


def sent_by(endpoint: str, *, shuffle: bool) -> list[list[Any]]:
    """The batches of two epochs, two each, as a trainer gets them from the server."""
    options = {"batch_size": 8, "drop_last": True, "seed": 3, "rank": 0, "world_size": 1}
    with RemoteDataset(endpoint, stream="train", shuffle=shuffle, **options) as dataset:
        return [described(batch.values()) for _ in range(2) for batch in dataset]


@pytest.mark.parametrize("framing", ["multipart", "single"])
@pytest.mark.parametrize("scheme", ["zpush", "zrpush", "zpub", "zrpub"])
def test_our_data_set_receives_what_tensorcom_sends(peer: Path, scheme: str, framing: Any) -> None:
    receives = scheme.replace("push", "pull").replace("pub", "sub")
    port = free_port()
    publishes = scheme.endswith("pub")
    dataset = PlainDataset(
        f"{receives}://127.0.0.1:{port}", 5, framing, infos=["image", "label"], timeout=PATIENCE, high_water=100
    )
    with dataset, sending(peer, f"{scheme}://127.0.0.1:{port}", framing, 0.02 if publishes else 0.0):
        numbers = []
        for images, labels in dataset:
            numbers.append(int(labels[0]))
            assert (labels.dtype, labels.tolist()[1:]) == (torch.int32, [-1, 2, 3])
            assert torch.equal(images, torch.full((4, 100, 100, 3), numbers[-1] % 256, dtype=torch.uint8))
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    assert publishes or numbers[0] == 0


@pytest.mark.parametrize("framing", ["multipart", "single"])
def test_tensorcom_binds_and_receives_from_our_sender_on_several_sockets(peer: Path, framing: Any) -> None:
    ports = [free_port(), free_port()]
    batches = [[torch.full((3, 5), number, dtype=torch.int32), torch.rand(3)] for number in range(6)]
    program = [peer, "-W", "ignore", PROGRAMS / "tensorcom_receive.py", f"zpull://127.0.0.1:{{{ports[0]},{ports[1]}}}"]
    with subprocess.Popen(
        [*map(str, program), framing, "6", ""], cwd="/", stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            with PlainSender(
                f"zpush://127.0.0.1:{{{ports[0]},{ports[1]}}}", framing=framing, timeout=PATIENCE
            ) as sender:
                sender.send_all(batches)
            text, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert sorted(map(str, said(text))) == sorted(str(described(batch)) for batch in batches)
