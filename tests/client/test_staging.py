"""Batches go to the device one ahead of the trainer, and are seen there whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from shardfeed.feed import Delivered, Feed
from shardfeed.routing import Step
from shardfeed.staging import Cuda, Staged, check_device
from shardfeed_wire.errors import ConfigError
from tests.requirements import require


def delivered(number: int, columns: dict[str, Any] | None = None) -> Delivered:
    none = np.empty(0, np.int64)
    step = Step(number, 0, number + 1, none, none, none, none, none == 0)
    keyhash = np.empty((0, 16), np.uint8)
    return Delivered(step, columns or {"n": torch.tensor([number])}, none == 0, keyhash, (), (), 0, None)


class StandIn:
    """Says that it is a device, and keeps a record of what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def send(self, columns: dict[str, Any]) -> dict[str, Any]:
        self.told.append(("send", int(columns["n"])))
        return {"n": columns["n"] + 100}

    def receive(self, sent: dict[str, Any]) -> dict[str, Any]:
        self.told.append(("receive", int(sent["n"]) - 100))
        return sent


def make() -> tuple[Feed, Staged, StandIn, list[int]]:
    taken: list[int] = []
    feed = Feed(lambda: taken.append(1), lambda: None)
    device = StandIn()
    return feed, Staged(feed, device), device, taken


def test_the_next_batch_is_sent_before_the_trainer_works_on_this_one_and_no_other() -> None:
    feed, staged, device, taken = make()
    for number in range(4):
        feed.put(delivered(number))
    first = staged.next()
    assert first is not None
    assert first.columns["n"].tolist() == [100]
    assert device.told == [("send", 0), ("receive", 0), ("send", 1)]
    assert len(taken) == 2
    second = staged.next()
    assert second is not None
    assert second.step.number == 1
    assert device.told[3:] == [("receive", 1), ("send", 2)]


def test_what_is_not_there_yet_is_not_waited_for_and_all_come_in_order() -> None:
    feed, staged, device, _ = make()
    seen = []
    for number in range(3):
        feed.put(delivered(number))
        batch = staged.next()
        assert batch is not None
        seen.append(batch.step.number)
    feed.put(delivered(3))
    feed.put(delivered(4))
    feed.end()
    while (batch := staged.next()) is not None:
        seen.append(batch.step.number)
    assert seen == [0, 1, 2, 3, 4]
    assert [number for what, number in device.told if what == "receive"] == seen


def test_an_error_comes_after_what_was_sent_before_it() -> None:
    feed, staged, _, _ = make()
    feed.put(delivered(0))
    feed.put(delivered(1))
    feed.end(ValueError("bad"))
    assert [staged.next() is not None for _ in range(2)] == [True, True]
    with pytest.raises(ValueError, match="bad"):
        staged.next()


@pytest.mark.parametrize("device", ["meta", "mps"])
def test_a_device_that_cannot_be_used_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        check_device(device)


def test_the_cpu_needs_no_staging() -> None:
    assert check_device("cpu") is None
    assert check_device(None) is None


def test_a_gpu_sees_what_was_sent() -> None:
    require("gpu", torch.cuda.is_available(), "torch finds no GPU here")
    device = Cuda(torch.device("cuda"))
    pictures = torch.arange(1 << 24, dtype=torch.uint8).pin_memory()
    columns = device.receive(device.send({"image": pictures, "text": ["a"], "ragged": [torch.ones(3)]}))
    assert columns["text"] == ["a"]
    assert columns["ragged"][0].is_cuda
    assert torch.equal(columns["image"].cpu(), pictures)
