"""Several byte strings in one, as a fuzzer has them: each part begins with its length in two bytes."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["in_parts", "parts_of"]


def parts_of(data: bytes) -> list[bytes]:
    """Cut bytes into parts."""
    parts = []
    while data:
        end = 2 + int.from_bytes(data[:2], "little")
        parts.append(data[2:end])
        data = data[end:]
    return parts


def in_parts(parts: Iterable[bytes]) -> bytes:
    """Join parts, each of at most 65,535 bytes, so that they can be cut again."""
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)
