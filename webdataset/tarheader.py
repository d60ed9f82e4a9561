"""The 512-byte headers of tar, and the records that extend them: ustar, GNU and pax.

Only the arithmetic of the format stands here. ``tarwalk`` reads headers from files and streams and
decides what follows which; ``tarsparse`` knows files with holes. Errors are ``ShardError`` with no
shard in them; whoever knows the shard's name adds it.
"""

from __future__ import annotations

import functools
import re
from struct import Struct
from zlib import adler32

from shardfeed_wire.errors import ShardError

__all__ = [
    "BLOCK",
    "ZERO_BLOCK",
    "checksum_matches",
    "gives_a_time",
    "member_name",
    "number",
    "padded",
    "parse_pax",
    "plain_header",
    "what_it_is_instead",
]

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

# What Python's tarfile writes in front of a member whose time has fractions, as webdataset's TarWriter gives it.
_TIME = re.compile(rb"([1-9][0-9]?) mtime=[0-9]+(?:\.[0-9]*)?\n")
_PAX_LENGTH = re.compile(rb"([0-9]{1,9}) ")
_ADLER_MODULUS = 65521
# Name; the size's digits and what ends them; checksum; kind; where a ustar prefix begins.
_PLAIN = Struct("100s 24x 11s B 12x 8s B 188x B 166x")
_FILE = ord("0")
_OTHER_FORMATS = (
    (b"\x1f\x8b", "gzip-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"\xfd7zXZ\0", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"\x04\x22\x4d\x18", "lz4-compressed"),
    (b"PK\x03\x04", "a zip file"),
)


def padded(size: int) -> int:
    """Round a size in bytes up to whole blocks."""
    return size + -size % BLOCK


def plain_header(block: bytes) -> tuple[bytes, int] | None:
    """Return name and size where a block is a header as nearly all are, that says all of its member.

    That is a regular file's, with a checksum that matches, no ustar prefix, no slash at the name's end and its
    size in octal; None for any other, also for none and for a block that is too short.
    """
    if len(block) != BLOCK:
        return None
    name, digits, stop, stored, kind, prefix = _PLAIN.unpack(block)
    if kind != _FILE or prefix or stop not in b"\0 " or adler32(block) & 0xFFFF != _adler_low(stored):
        return None
    # A first digit means no sign.
    if not 0x30 <= digits[0] <= 0x37:
        return None
    name = name.partition(b"\0")[0]
    try:
        return None if name[-1:] == b"/" else (name, int(digits, 8))
    except ValueError:
        return None


def gives_a_time(block: bytes, behind: bytes) -> bool:
    """Say whether a block and the one behind it give the next member a time, and nothing else.

    Nobody here wants to know it, but many shards have it in front of each member.
    """
    found = _TIME.match(behind) if block[156:157] == b"x" and checksum_matches(block) else None
    return found is not None and found.end() == int(found[1]) == number(block[124:136])


def checksum_matches(block: bytes) -> bool:
    """Say whether a 512-byte block carries its own checksum, as every tar header does."""
    stored = block[148:156]
    if adler32(block) & 0xFFFF == (expected := _adler_low(stored)):
        return True
    if expected < 0:
        return False
    # Some old tars sum signed bytes; only names outside ASCII show the difference.
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 256
    return signed == _checksum(stored)


@functools.lru_cache(4096)  # there are some hundred in a data set
def _adler_low(stored: bytes) -> int:
    """Return the low half of a header's adler32 where its checksum is the one stored; -1 where that is no number.

    It is 1 + the sum of the bytes modulo 65521: 13 times faster than sum(), and this runs once a member.
    """
    try:
        # The field itself counts as eight spaces.
        return (1 + _checksum(stored) - 256 + sum(stored)) % _ADLER_MODULUS
    except ValueError:
        return -1


def _checksum(stored: bytes) -> int:
    # Six digits, a zero and a space is how nearly all write it.
    return int(stored[:6] if stored[6] == 0 else stored.rstrip(b"\0 "), 8)


def number(field: bytes) -> int:
    """Read a number of a header: octal ASCII, or base 256 where the top bit says so.

    :raises ShardError: neither, or negative.
    """
    # Eleven digits and an end is how nearly all write it; a first digit means no sign.
    if 0x30 <= field[0] <= 0x37 and field[11] in b"\0 ":
        try:
            return int(field[:11], 8)
        except ValueError:
            pass
    if field[0] & 0x80:
        # Base 256, big-endian; 0xff starts a negative number, which no size is.
        if field[0] == 0xFF:
            raise ShardError("a tar header holds a negative size")
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b"\0 ")
    if not digits:
        return 0
    try:
        value = int(digits, 8)
    except ValueError:
        raise ShardError(f"a tar header holds the size {field!r}, which is not octal") from None
    if value < 0:
        raise ShardError(f"a tar header holds the negative size {field!r}")
    return value


def member_name(block: bytes) -> str:
    """Read a member's name from its header, joined with the ustar prefix where there is one.

    Bytes that are not UTF-8 become surrogate escapes, as Python's own file names have them.
    """
    name = block[:100].partition(b"\0")[0]
    # GNU's old format uses the prefix area for other things; its magic has spaces.
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def parse_pax(data: bytes) -> list[tuple[str, bytes]]:
    """Split a pax extended header into its records, in order; keywords may repeat.

    :raises ShardError: a record whose length is wrong or that has no ``=``.
    """
    records = []
    offset = 0
    while offset < len(data) and data[offset]:
        match = _PAX_LENGTH.match(data, offset)
        end = offset + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise ShardError("a pax header in it is malformed")
        keyword, equals, value = data[match.end() : end - 1].partition(b"=")
        if not equals:
            raise ShardError("a pax header in it has a record without '='")
        records.append((keyword.decode("utf-8", "surrogateescape"), value))
        offset = end
    return records


def what_it_is_instead(start: bytes) -> str | None:
    """Name the format of a file that is not a tar from its first bytes, or return None."""
    return next((name for magic, name in _OTHER_FORMATS if start.startswith(magic)), None)
