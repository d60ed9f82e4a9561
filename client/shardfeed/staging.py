"""Batches on their way to the trainer's device: copied on a stream of their own, one batch ahead of the trainer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import get_worker_info

from shardfeed.feed import Delivered, Feed
from shardfeed_wire.errors import ConfigError

__all__ = ["Cuda", "Device", "Staged", "check_device"]


class Device(Protocol):
    """Where batches are to be. Called in the trainer's thread."""

    def send(self, columns: dict[str, Any]) -> Any:
        """Begin to copy the tensors among a batch's columns; does not wait for it."""

    def receive(self, sent: Any) -> dict[str, Any]:
        """Return the columns sent, such that what the trainer does next sees them whole."""


@dataclass(frozen=True, slots=True)
class _Sent:
    columns: dict[str, Any]
    done: torch.cuda.Event


class Cuda:
    """One GPU, and the stream on which batches are copied to it."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream. Raises ConfigError in a DataLoader's worker, which cannot use a GPU."""
        if get_worker_info() is not None:
            raise ConfigError("device= is for the trainer's own process; in a DataLoader's workers leave it out")
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it so

    def send(self, columns: dict[str, Any]) -> _Sent:
        """See `Device`. What lies in page-locked memory is copied while the trainer computes."""
        with torch.cuda.stream(self._stream):
            moved = {name: _moved(value, self._device) for name, value in columns.items()}
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it so
            done.record(self._stream)
        return _Sent(moved, done)

    def receive(self, sent: _Sent) -> dict[str, Any]:
        """See `Device`."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(sent.done)
        for value in sent.columns.values():
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(current)  # its memory was taken on the other stream
        return sent.columns


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value


def check_device(device: str | torch.device | None) -> torch.device | None:
    """Return the GPU where batches are to be; None for this process's own memory.

    Raises ConfigError for a device that is neither CUDA's nor the CPU, or is not there.
    """
    try:
        wanted = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={device!r}: it is 'cuda' or 'cpu', and torch knows none such") from error
    if wanted is None or wanted.type == "cpu":
        return None
    if wanted.type != "cuda":
        raise ConfigError(f"device={str(device)!r}: it is 'cuda' or 'cpu'; move batches to others yourself")
    if not torch.cuda.is_available():
        raise ConfigError(f"device={str(device)!r}: torch finds no GPU here; leave device out, or mend the driver")
    return wanted


class Staged:
    """A feed whose next batch is on its way to the device while the trainer works on this one."""

    def __init__(self, feed: Feed, device: Device) -> None:
        """Send nothing yet."""
        self._feed, self._device = feed, device
        self._next: tuple[Delivered, Any] | None = None

    @property
    def waited(self) -> float:
        """Seconds that the trainer has waited in `next`."""
        return self._feed.waited

    def next(self) -> Delivered | None:
        """Return the next batch, on the device, and send the one behind it, if there is one; see `Feed.next`."""
        staged, self._next = self._next, None
        if staged is None:
            batch = self._feed.next()
            if batch is None:
                return None
            staged = batch, self._device.send(batch.columns)
        batch, sent = staged
        columns = self._device.receive(sent)
        behind = self._feed.poll()
        if behind is not None:
            self._next = behind, self._device.send(behind.columns)
        return replace(batch, columns=columns)

    def close(self, error: BaseException | None = None) -> None:
        """Say that the trainer wants no more; see `Feed.close`."""
        self._next = None
        self._feed.close(error)
