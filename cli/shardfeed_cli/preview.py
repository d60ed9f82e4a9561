"""`shardfeed preview`: pictures as the trainer gets them, in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardfeed_wire.errors import ConfigError

if TYPE_CHECKING:
    from shardfeed import BatchInfo

__all__ = ["preview"]


def preview(
    url: Annotated[str, typer.Argument(help="The server or servers, as for RemoteDataset.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture to write, such as grid.png.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=4096, help="How many samples.")] = 16,
    stream: Annotated[
        str | None, typer.Option(help="The stream.  [default: the server's only one, else default]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=(1 << 64) - 1, help="Of the order and the augmentation.")] = 0,
    epoch: Annotated[int, typer.Option(min=0, max=(1 << 63) - 2, help="Whose first samples are shown.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for a server, and for the batch.")] = 30.0,
    curve: Annotated[
        str | None, typer.Option(help="This client's key file, of `shardfeed keygen`, for servers with --curve.")
    ] = None,
) -> None:
    """Draw the first samples of an epoch, with their labels, as a trainer with this seed gets them."""
    _check_output(output)
    from shardfeed import RemoteDataset
    from shardfeed_cli.grid import draw_grid
    from shardfeed_cli.pictures import caption, find_pictures, to_picture
    from shardfeed_cli.streams import only_stream

    dataset = RemoteDataset(
        url,
        stream=stream or only_stream(url, timeout, curve),
        batch_size=count,
        seed=seed,
        rank=0,
        world_size=1,
        on_error="mask",
        connect_timeout=timeout,
        timeout=timeout,
        curve=curve,
        info=True,
    )
    dataset.set_epoch(epoch)
    with dataset:
        columns, info = _split(next(iter(dataset)))
    name = find_pictures(columns)
    others = {other: column for other, column in columns.items() if other != name}
    cells = []
    for row in range(len(info.keys)):
        good = bool(info.valid[row])
        text = caption(others, row) or info.keys[row]
        cells.append((to_picture(columns[name][row]) if good else None, text if good else f"bad: {info.keys[row]}"))
    grid = draw_grid(cells)
    try:
        grid.save(output)
    except OSError as error:
        raise ConfigError(f"-o {output} cannot be written: {error.strerror or error}; name another file") from error
    print(f"{output}: {len(cells)} samples, {grid.width} x {grid.height} pixels")


def _check_output(output: Path) -> None:
    from PIL import Image

    if output.suffix.lower() not in Image.registered_extensions():
        raise ConfigError(f"-o {output}: {output.suffix or 'no ending'} is no picture's; write for example grid.png")
    if not output.parent.is_dir():
        raise ConfigError(f"-o {output}: there is no folder {output.parent}; make it first")


def _split(batch: Any) -> tuple[dict[str, Any], BatchInfo]:
    """Return a batch's columns, by name or else by number, and its info."""
    if isinstance(batch, dict):
        return {name: column for name, column in batch.items() if name != "__info__"}, batch["__info__"]
    return {str(number): column for number, column in enumerate(batch[:-1])}, batch[-1]
