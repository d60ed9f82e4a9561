"""Shards for tests, written by Python's tarfile, which is also what they are compared with."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["numbered_files", "read_by_tarfile", "tar_bytes", "write_tar"]


def tar_bytes(
    files: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT, mode: str = "w", *, time: float = 0
) -> bytes:
    """Make a tar of (name, content) pairs, all with one time: pax gives one with fractions a header of its own."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=tar_format) as archive:  # type: ignore[call-overload]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = time
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> str:
    """Write a tar of (name, content) pairs to a path, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, tar_format))
    return str(path)


def numbered_files(samples: Sequence[int], size: int = 700, prefix: str = "") -> list[tuple[str, bytes]]:
    """Give two files a sample: ``bin``, of about ``size`` bytes that differ between samples, and ``cls``."""
    files = []
    for number in samples:
        files.append((f"{prefix}{number:06d}.bin", bytes([number % 251]) * (size + number % 7)))
        files.append((f"{prefix}{number:06d}.cls", str(number).encode()))
    return files


def read_by_tarfile(data: bytes) -> list[tuple[str, bytes]]:
    """Read the regular files of a tar as Python's tarfile does."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = []
        for info in archive:
            if info.isreg():
                content = archive.extractfile(info)
                assert content is not None
                found.append((info.name, content.read()))
        return found
