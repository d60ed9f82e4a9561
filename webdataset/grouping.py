"""From members to samples: consecutive files with one key.

This runs once a sample of a data set, so what is plain takes a short way: headers that say all of their
member, and names that go on as the one before did. `tarwalk` knows all the rest of tar.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from shardfeed_wire.errors import SampleError
from webdataset.keys import NO_PREFIX, Keys, field_of, is_meta, prefix_of
from webdataset.tarheader import BLOCK, gives_a_time, plain_header
from webdataset.tarsource import OrderedSource
from webdataset.tarwalk import Member, read_member, truncated_inside, walk

__all__ = ["group_members"]

# A member this small is cut out of what is read together with the header behind it.
_SMALL: Final = 16 << 10


def group_members(
    source: OrderedSource, keys: Keys, suffixes: Collection[str] | None, *, part: bool = False
) -> Iterator[dict[str, Any] | SampleError]:
    """Yield samples, undecoded, and an error in the place of each that has a field twice. May block.

    :param part: as for ``walk``, which says what else is raised.
    """
    key, prefix = "", NO_PREFIX
    sample: dict[str, Any] = {}
    fault: SampleError | None = None
    at, block = 0, source.block(0)
    while True:
        field: str | None = None
        member: Member | None = None
        header = plain_header(block)
        if header is None and block[156:157] == b"x":
            behind = source.take(2 * BLOCK)
            if gives_a_time(block, behind):
                at, block = at + 2 * BLOCK, behind[BLOCK:]
                header = plain_header(block)
            else:
                block += behind
        if header is not None:
            name, size = header
            end = at + BLOCK + size + (-size & (BLOCK - 1))
            if name.startswith(prefix):
                field = field_of(name[len(prefix) :])
        else:
            source.give_back(block)
            member = next(walk(source, at, part=part), None)
            if member is None:
                break
            name, size, end = member[0].encode("utf-8", "surrogateescape"), member[3], member[4]
        if field is None:
            path = name.decode("utf-8", "surrogateescape")
            new, suffix = keys(path)
            if new is None or suffix is None or (path[:2] == "__" and is_meta(path)):
                at, block = end, source.block(end)
                continue
            field = suffix.lower()
            if new != key or not sample:
                if sample:
                    yield fault or sample
                key, sample, fault = new, {"__key__": new}, None
                prefix = prefix_of(new, keys)
        if field in sample:
            fault = _twice(key, field)
            block = source.block(end)
        elif suffixes is not None and field not in suffixes:
            block = source.block(end)
        elif member is not None:
            sample[field] = read_member(source, member)
            block = source.block(end)
        else:
            data = source.take(end - at if size <= _SMALL else size)
            if len(data) < size:
                raise truncated_inside(source, name.decode("utf-8", "surrogateescape"), size)
            if size <= _SMALL:
                # Behind it come its padding and the next header.
                sample[field] = data[:size]
                block = data[end - at - BLOCK :]
            else:
                sample[field] = data
                block = source.block(end)
        at = end
    if sample:
        yield fault or sample


def _twice(key: str, field: str) -> SampleError:
    """Return the error of a sample that has a field twice."""
    reason = "the field is there twice"
    return SampleError(f"sample {key}, field {field}: {reason}; pack it once", key=key, field=field, reason=reason)
