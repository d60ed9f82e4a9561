"""What columns a stream has, from samples that were tried."""

from __future__ import annotations

from collections.abc import Sequence

from shardfeed_server.columns import Cell
from shardfeed_server.fields import Field
from shardfeed_wire.errors import ConfigError, ShapeError
from shardfeed_wire.messages import Column

__all__ = ["describe_columns"]


def describe_columns(fields: Sequence[Field], samples: Sequence[Sequence[Cell]]) -> tuple[Column, ...]:
    """Return one column a field, from the cells of at least one sample.

    A dimension that varies between samples is None, and the whole shape is, where the number of
    dimensions does. Raises ShapeError where a field's kind or dtype varies, and
    ConfigError for a pad_value that its dtype does not have, and for a mask of single numbers.
    """
    return tuple(_describe(field, [cells[number] for cells in samples]) for number, field in enumerate(fields))


def _describe(field: Field, cells: Sequence[Cell]) -> Column:
    first = cells[0]
    for cell in cells:
        if (cell.kind, cell.dtype) != (first.kind, first.dtype):
            raise ShapeError(
                f"field {field.name!r} is {first.kind} of {first.dtype} in one sample "
                f"and {cell.kind} of {cell.dtype} in another; "
                "store it alike in all, or convert it in a Python transform"
            )
    if first.kind in ("text", "bytes", "json"):
        return Column(name=field.name, kind=first.kind)
    if field.padding is not None and field.padding.mask is not None and first.kind == "dense":
        raise ConfigError(
            f"field {field.name!r}: it holds single numbers, which are not padded, so that there is no "
            f"{field.padding.mask!r}; leave mask out"
        )
    if field.padding is not None and not field.padding.fits(first.dtype):
        raise ConfigError(
            f"field {field.name!r}: pad_value = {field.padding.value:g} is no {first.dtype}, which the field holds; "
            "write one that is"
        )
    shapes = [cell.shape for cell in cells]
    shape: tuple[int | None, ...] | None = None
    if len({len(one) for one in shapes}) == 1:
        shape = tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
    return Column(
        name=field.name,
        kind=first.kind,
        dtype=first.dtype,
        shape=shape,
        padding=field.padding if first.kind == "ragged" else None,
    )
