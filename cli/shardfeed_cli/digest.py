"""`shardfeed digest`: what an epoch delivers, as one number, so that two clusters can be compared from a shell."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = ["digest"]


def digest(
    endpoints: Annotated[str, typer.Argument(help="The server or servers, as for RemoteDataset.")],
    stream: Annotated[
        str | None, typer.Option(help="The stream.  [default: the server's only one, else default]")
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, max=(1 << 63) - 2, help="The epoch that is read.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 64) - 1, help="Of the order and the augmentation.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows asked for at once; no part of the digest.")] = 64,
    shuffle: Annotated[bool, typer.Option(help="Whether the order is random.")] = True,
    content: Annotated[bool, typer.Option(help="Let every row's bytes count, not its place and key alone.")] = False,
    on_error: Annotated[
        Literal["raise", "mask"], typer.Option(help="End at a bad sample, or count its place and key all the same.")
    ] = "raise",
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for a server, and for a batch.")] = 30.0,
    curve: Annotated[
        str | None, typer.Option(help="This client's key file, of `shardfeed keygen`, for servers with --curve.")
    ] = None,
) -> None:
    """Read one epoch as one rank and print its digest, equal for any servers, ranks and batch sizes."""
    from shardfeed import RemoteDataset
    from shardfeed_cli.streams import only_stream

    dataset = RemoteDataset(
        endpoints,
        stream=stream or only_stream(endpoints, timeout, curve),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        rank=0,
        world_size=1,
        on_error=on_error,
        connect_timeout=timeout,
        timeout=timeout,
        curve=curve,
        digest="content" if content else "keys",
    )
    dataset.set_epoch(epoch)
    with dataset:
        for _ in dataset:
            pass
        print(dataset.digest)
