"""A server that lies, on a real socket: the trainer is told in time, by an error that is documented."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from shardfeed import RefusedError, RemoteDataset, ShardfeedError
from shardfeed_wire import messages
from shardfeed_wire.errors import BrokenChannelError
from shardfeed_wire.messages import (
    Batch,
    Column,
    Failure,
    Get,
    GetManifest,
    Hello,
    Message,
    SharedMemory,
    StreamInfo,
    Welcome,
    pack,
    unpack,
)
from shardfeed_wire.transport import Limits, Network

Said: TypeAlias = tuple[Message, list[NDArray[Any]]]
Lie: TypeAlias = Callable[[Message, list[NDArray[Any]]], Said | None]

SAMPLES = 8
INFO = StreamInfo(
    name="default", data="d0", recipe="r", samples=SAMPLES, blocks=2, shards=1, columns=(Column(name="x"),)
)
MANIFEST = [
    np.array([4, 4], np.uint16),
    np.array([2], np.uint32),
    np.frombuffer(b"a.tar", np.uint8),
    np.array([0, 5], np.int64),
]


def truth(asked: Message, tensors: list[NDArray[Any]]) -> Said | None:
    match asked:
        case Hello():
            return Welcome(version=1, server="liar", nonce="1", workers=1, streams=(INFO,)), []
        case GetManifest():
            return messages.Manifest(request=asked.request, data=asked.data, samples=SAMPLES), MANIFEST
        case Get():
            rows = len(tensors[0])
            columns = (Column(name="x", shape=(2,), tensor=1),)
            batch = Batch(request=asked.request, rows=rows, columns=columns, first=("a.tar", "k"))
            return batch, [np.zeros((rows, 16), np.uint8), np.zeros((rows, 2), np.uint8)]
        case _:
            return None


class Liar(threading.Thread):
    """A server that says the truth but where ``lie`` changes it, or says nothing."""

    def __init__(self, lie: Lie) -> None:
        super().__init__()
        self.url = ""
        self._lie, self._listens = lie, threading.Event()
        self._loop = asyncio.new_event_loop()
        self._serving: asyncio.Task[None]
        self.start()
        assert self._listens.wait(10)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        network = Network()
        listener = network.listen("tcp://127.0.0.1:0", Limits(frame_bytes=1 << 20))
        self.url = listener.url
        self._serving = asyncio.create_task(self._serve(listener))
        self._listens.set()
        await asyncio.wait([self._serving])
        await listener.close()
        network.close()

    async def _serve(self, listener: Any) -> None:
        while True:
            peer, chunks = await listener.receive()
            said = truth(*unpack(chunks))
            if said is None or (told := self._lie(*said)) is None:
                continue
            with contextlib.suppress(BrokenChannelError):
                await listener.send(peer, pack(*told))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._serving.cancel)
        self.join()


@pytest.fixture
def liar() -> Iterator[Callable[[Lie], Liar]]:
    made: list[Liar] = []

    def make(lie: Lie) -> Liar:
        made.append(Liar(lie))
        return made[-1]

    yield make
    for each in made:
        each.close()


def at(kind: type[Message], change: Callable[[Any, list[NDArray[Any]]], Said]) -> Lie:
    """Lie in messages of one kind."""
    return lambda said, tensors: change(said, tensors) if isinstance(said, kind) else (said, tensors)


def stream(**lies: Any) -> Lie:
    return at(Welcome, lambda said, tensors: (replace(said, streams=(replace(INFO, **lies),)), tensors))


def manifest(*tensors: NDArray[Any]) -> Lie:
    return at(messages.Manifest, lambda said, _: (said, list(tensors)))


NO_ROWS = at(
    Batch,
    lambda said, tensors: (
        replace(said, columns=(), failures=(Failure(row=0, shard="a.tar", key="k"),) * said.rows),
        tensors,
    ),
)


@pytest.mark.parametrize(
    "lie",
    [
        stream(samples=-1),
        stream(samples=1 << 62),
        stream(shards=-3, readable=b""),
        stream(shards=100, readable=b"\xff"),
        stream(shards=16, readable=b"\1\0"),
        stream(blocks=1 << 40),
        stream(data="../../etc/passwd"),
        stream(data=""),
        manifest(),
        manifest(MANIFEST[0], np.array([1, 0, 1], np.uint32), *MANIFEST[2:]),
        manifest(*MANIFEST[:3], np.array([0, 1 << 62], np.int64)),
        NO_ROWS,
        at(Batch, lambda said, tensors: (said, tensors[:1])),
        at(Batch, lambda said, tensors: (replace(said, rows=1 << 60), tensors)),
        at(Welcome, lambda said, tensors: (replace(said, version=99), tensors)),
        at(Welcome, lambda said, _: (said.streams[0] and replace(said, streams=()), [])),
    ],
    ids=range(16),
)
def test_a_server_that_lies_is_refused_and_nothing_of_the_client_fails(
    liar: Callable[[Lie], Liar], caplog: pytest.LogCaptureFixture, lie: Lie
) -> None:
    server = liar(lie)
    with (
        caplog.at_level(logging.ERROR),
        RemoteDataset(server.url, batch_size=4, connect_timeout=5, timeout=5, on_error="mask") as dataset,
        pytest.raises(RefusedError),
    ):
        list(dataset)
    assert caplog.records == []


@pytest.mark.parametrize(
    "lie",
    [
        lambda *said: said,
        at(Welcome, lambda said, tensors: (replace(said, workers=(1 << 64) - 1), tensors)),
        at(Welcome, lambda said, _: (replace(said, shared=SharedMemory(socket="x" * 999, token=b"")), [])),
        at(Welcome, lambda said, _: (replace(said, shared=SharedMemory(socket="nobody", token=b"")), [])),
    ],
    ids=["truth", "workers", "socket", "nobody"],
)
def test_what_harms_nobody_is_taken(liar: Callable[[Lie], Liar], lie: Lie) -> None:
    server = liar(lie)
    try:
        with RemoteDataset(server.url, batch_size=4, connect_timeout=5, timeout=5) as dataset:
            assert sum(len(batch["x"]) for batch in dataset) == SAMPLES
    except ShardfeedError as error:
        pytest.fail(str(error))


def test_a_manifest_that_one_server_never_sends_is_had_from_another(
    liar: Callable[[Lie], Liar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no manifest from the tests before
    asked: list[str] = []

    def silent_at_first(name: str) -> Lie:
        def lie(said: Message, tensors: list[NDArray[Any]]) -> Said | None:
            if isinstance(said, messages.Manifest):
                asked.append(name)
                if len(asked) == 1:
                    return None
            return said, tensors

        return lie

    urls = [liar(silent_at_first(name)).url for name in "ab"]
    with RemoteDataset(urls, batch_size=4, connect_timeout=20, timeout=20) as dataset:
        assert sum(len(batch["x"]) for batch in dataset) == SAMPLES
    assert sorted(asked) == ["a", "b"]
