"""What a server sends as plain streams, to receivers that speak no protocol: the tables ``[[outputs]]``, typed.

`docs/configuration.md` describes every key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import msgspec

from shardfeed_server.tables import Place, read_table
from shardfeed_wire.errors import ConfigError
from shardfeed_wire.exposure import check_exposure
from shardfeed_wire.plain import expand_plain

__all__ = ["OutputConfig", "check_outputs", "read_outputs"]


class OutputConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One output: a stream's batches, epoch after epoch, to one URL or several.

    ``url`` is ``zpush://host:port`` or the like, braces allowed. ``stream`` may be left out where there is one
    only. ``infos`` is whether columns' names are sent, or the names to send. ``epochs`` None: without end.
    ``high_water`` bounds the batches that wait for each receiver. Raises ConfigError for a URL that does
    not send, and for a number that makes no sense.
    """

    url: str
    stream: str | None = None
    batch_size: int = 64
    framing: Literal["multipart", "single"] = "multipart"
    infos: bool | tuple[str, ...] = False
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    epochs: int | None = None
    on_error: Literal["mask", "raise"] = "mask"
    high_water: int = 4

    def __post_init__(self) -> None:
        expand_plain(self.url, sends=True)
        for name, value in (("batch_size", self.batch_size), ("high_water", self.high_water), ("epochs", self.epochs)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed is {self.seed}; it lies in 0 .. 2**64 - 1")

    def arguments(self, stream: str) -> Iterator[str]:
        """Yield the URL and the options of `shardfeed push` that do what this output says."""
        yield from (self.url, "--stream", stream, "--batch-size", str(self.batch_size), "--framing", self.framing)
        yield from ("--seed", str(self.seed), "--on-error", self.on_error, "--high-water", str(self.high_water))
        if self.infos is True:
            yield "--infos"
        elif self.infos:
            yield from (part for name in self.infos for part in ("--info", name))
        if not self.shuffle:
            yield "--no-shuffle"
        if self.drop_last:
            yield "--drop-last"
        if self.epochs is not None:
            yield from ("--epochs", str(self.epochs))


def check_outputs(outputs: Sequence[OutputConfig], streams: Collection[str], *, insecure: bool) -> None:
    """Raise ConfigError for a stream that there is not, and for an address bound that needs ``insecure``."""
    for output in outputs:
        if output.stream is None and len(streams) > 1:
            raise ConfigError(f"outputs: {output.url!r} needs a stream; there are: {', '.join(sorted(streams))}")
        if output.stream is not None and output.stream not in streams:
            raise ConfigError(
                f"outputs: {output.url!r} is of a stream {output.stream!r}; there are: {', '.join(sorted(streams))}"
            )
        for endpoint in expand_plain(output.url, sends=True):
            check_exposure("outputs", endpoint.url, loopback=not endpoint.is_exposed, insecure=insecure)


def read_outputs(value: object, place: Place) -> tuple[OutputConfig, ...]:
    """Read the list of tables that was written at ``place``. Raises ConfigError."""
    if not isinstance(value, list):
        raise place.error(f"found {value!r}: expected tables, [[outputs]]")
    return tuple(read_table(OutputConfig, table, place / str(number), {}) for number, table in enumerate(value))
