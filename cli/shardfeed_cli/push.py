"""`shardfeed push`: a stream of loader servers as a plain stream, for programs that speak no protocol of ours."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from shardfeed_cli.logs import show_logs
from shardfeed_wire.endpoint import parse_endpoint
from shardfeed_wire.errors import ConfigError, NobodyAnswersError, ShardfeedError

if TYPE_CHECKING:
    from shardfeed import PlainSender
    from shardfeed_wire.messages import StreamInfo

__all__ = ["Framing", "OnError", "push"]

log = logging.getLogger("shardfeed.push")


class Framing(StrEnum):
    """How a batch becomes a message."""

    MULTIPART = "multipart"
    SINGLE = "single"


class OnError(StrEnum):
    """What becomes of a bad sample."""

    RAISE = "raise"
    MASK = "mask"


def push(
    endpoints: Annotated[str, typer.Argument(help="The server or servers: 'tcp://data-{0..3}:7880'.")],
    url: Annotated[str, typer.Argument(help="Where batches go: zpush://127.0.0.1:7890, zpub+ipc:///tmp/feed, ...")],
    stream: Annotated[
        str | None, typer.Option(help="The stream.  [default: the server's only one, else default]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one batch.")] = 64,
    framing: Annotated[Framing, typer.Option(help="A frame an array, or one a batch.")] = Framing.MULTIPART,
    infos: Annotated[bool, typer.Option("--infos", help="Send the columns' names, too.")] = False,
    info: Annotated[list[str] | None, typer.Option(help="Send this name for an array; once for each.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 64) - 1, help="Of the order and the augmentation.")] = 0,
    shuffle: Annotated[bool, typer.Option(help="Whether the order is random.")] = True,
    drop_last: Annotated[bool, typer.Option("--drop-last", help="Leave an epoch's last batch out if short.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="How many.  [default: without end]")] = None,
    on_error: Annotated[
        OnError, typer.Option(help="A bad sample ends it (raise), or another takes its place (mask).")
    ] = OnError.MASK,
    high_water: Annotated[int, typer.Option(min=1, help="Batches that wait for each receiver.")] = 4,
    insecure: Annotated[bool, typer.Option("--insecure", help="Bind an address that other machines reach.")] = False,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for a server, and for a batch.")] = 300.0,
    curve: Annotated[
        str | None, typer.Option(help="This client's key file, of `shardfeed keygen`, for servers with --curve.")
    ] = None,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log JSON on stderr, one line an event, and print nothing else.")
    ] = False,
    end_with: Annotated[int | None, typer.Option(hidden=True, help="End when this inherited pipe closes.")] = None,
) -> None:
    """Read a stream as a trainer does, and send its batches on, epoch after epoch, until SIGTERM or Ctrl-C.

    A push waits while nobody takes batches; a pub loses them, as pub does.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    orphaned = threading.Event()
    if end_with is not None:
        threading.Thread(target=_end_with, args=(end_with, orphaned), name="end-with", daemon=True).start()
    show_logs(as_json=log_json)
    try:
        described = _describe(endpoints, stream, timeout, curve)
        names = info or (_names(described) if infos else None)
        from shardfeed import PlainSender, RemoteDataset

        dataset = RemoteDataset(
            endpoints,
            stream=described.name,
            batch_size=batch_size,
            seed=seed,
            shuffle=shuffle,
            drop_last=drop_last,
            on_error=on_error.value,
            rank=0,
            world_size=1,
            connect_timeout=timeout,
            timeout=timeout,
            curve=curve,
            job=f"push-{url}-{os.getpid()}",
        )
        sender = PlainSender(
            url,
            framing=framing.value,
            infos=names or False,
            high_water=high_water,
            timeout=None,
            # Whoever starts us with a pipe has checked that already, by its own rule.
            insecure=insecure or end_with is not None,
        )
        with dataset, sender:
            _announce(
                f"pushing {described.name} to {', '.join(sender.urls)}: batches of {batch_size}, framing {framing}",
                log_json=log_json,
            )
            _send(dataset, sender, epochs)
    except ShardfeedError as error:
        if not log_json:
            raise
        log.error("%s", error)
        raise typer.Exit(1) from None
    finally:
        if orphaned.is_set():
            _remove_private_endpoint(endpoints)


def _announce(said: str, *, log_json: bool) -> None:
    """Say what is sent where, on stdout or as an event."""
    if log_json:
        log.info("%s", said)
    else:
        print(said, flush=True)


def _send(dataset: Any, sender: PlainSender, epochs: int | None) -> None:
    """Send one epoch after the other, and tell the log of each."""
    while epochs is None or dataset.epoch < epochs:
        epoch, sent, dropped = dataset.epoch, sender.sent, sender.dropped
        for batch in dataset:
            sender.send([_array(column) for column in (batch.values() if isinstance(batch, dict) else batch)])
        if sender.sent == sent:
            raise ConfigError("an epoch has no batch: fewer samples than one batch; lower --batch-size")
        log.info("epoch %d: %d batches sent, %d dropped", epoch, sender.sent - sent, sender.dropped - dropped)


def _array(column: Any) -> Any:
    """Return a column in a dtype that tenbin has."""
    import torch

    if column.dtype == torch.bool:
        return column.view(torch.uint8)
    return column.float() if column.dtype == torch.bfloat16 else column


def _describe(endpoints: str, stream: str | None, timeout: float, curve: str | None) -> StreamInfo:
    """Return what the first server that answers says of the stream; refuse what no array can hold."""
    from shardfeed.addresses import endpoints_now
    from shardfeed.inquiry import ask_server
    from shardfeed.local import LOCAL
    from shardfeed_cli.streams import only_stream

    name = stream or only_stream(endpoints, timeout, curve)
    failed: list[NobodyAnswersError] = []
    for endpoint in endpoints_now(endpoints):
        if endpoint.startswith(LOCAL):
            raise ConfigError(
                f"endpoint {endpoint!r}: push reads servers that run; for a server of its own use `shardfeed serve "
                "--config FILE --push URL`"
            )
        try:
            answered = ask_server(endpoint, timeout=timeout, curve=curve)
            break
        except NobodyAnswersError as error:  # another may
            failed.append(error)
    else:
        raise failed[-1]
    found = next((one for one in answered.streams if one.name == name), None)
    if found is None:
        raise ConfigError(
            f"no stream {name!r} there; there are: {', '.join(sorted(one.name for one in answered.streams))}"
        )
    for column in found.columns:
        if column.kind != "dense" and column.padding is None:
            raise ConfigError(
                f"stream {name!r}: column {column.name!r} is {column.kind}, and plain streams carry arrays alone; "
                "leave the field out, let a transform make numbers of it, or pad it"
            )
    return found


def _names(stream: StreamInfo) -> list[str]:
    """Return the names of a batch's arrays, in order."""
    return [name for column in stream.columns for name in _names_of(column)]


def _names_of(column: Any) -> Iterator[str]:
    yield column.name
    if column.padding is not None and column.padding.mask is not None:
        yield column.padding.mask


def _end_with(descriptor: int, orphaned: threading.Event) -> None:
    """Wait for the end of a pipe, say so, and end the program as SIGTERM does."""
    while os.read(descriptor, 1):
        pass
    orphaned.set()
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _remove_private_endpoint(url: str) -> None:
    """Remove the socket of the server that started us, and its folder, in case that it was killed and cannot."""
    path = Path(parse_endpoint(url).path)
    with contextlib.suppress(OSError):  # gone, or not empty
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
