"""The order, the hashes and the frames, written a second time, slowly, from the text of `docs/protocol.md`.

Pure Python, no numpy and nothing of shardfeed, so that an error would have to be made twice. The test
vectors in ``order.json`` come from here (``python -m tests.vectors.write``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice

WORD = (1 << 64) - 1

BLOCK_ORDER, INSIDE_BLOCK, AUGMENTATION = 0, 1, 2


def philox_words(seed: int, epoch: int, identity: int, purpose: int) -> Iterator[int]:
    """Yield the raw words of Philox 4x64-10 with key (seed, epoch) and counter (1, low, high, purpose), (2, ...) ..."""
    first = 0
    while True:
        first += 1
        yield from philox_block([first, identity & WORD, identity >> 64, purpose], [seed, epoch])


def philox_block(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Return the four words of one counter: ten rounds."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (product1 >> 64) ^ c1 ^ k0, product1 & WORD, (product0 >> 64) ^ c3 ^ k1, product0 & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return [c0, c1, c2, c3]


def permutation(words: Iterator[int], size: int) -> list[int]:
    """Return the stable argsort of ``size`` words."""
    drawn = list(islice(words, size))
    return sorted(range(size), key=lambda place: drawn[place])


def order(block_sizes: Sequence[int], seed: int, epoch: int, shuffle: bool, lanes: int) -> list[tuple[int, int]]:
    """Return (block, sample inside it) at each position of the epoch."""
    blocks = list(range(len(block_sizes)))
    if shuffle:
        blocks = permutation(philox_words(seed, epoch, 0, BLOCK_ORDER), len(block_sizes))
    line: list[tuple[int, int]] = []
    for block in blocks:
        inside = list(range(block_sizes[block]))
        if shuffle:
            inside = permutation(philox_words(seed, epoch, block, INSIDE_BLOCK), block_sizes[block])
        line += [(block, sample) for sample in inside]
    cut_into: list[list[tuple[int, int]]] = []
    for lane in range(lanes):
        length = len(line) // lanes + (1 if lane < len(line) % lanes else 0)
        first = sum(map(len, cut_into))
        cut_into.append(line[first : first + length])
    return [cut_into[position % lanes][position // lanes] for position in range(len(line))]


def step_rows(
    samples: int, consumed: int, batch_size: int, rank: int, world_size: int, tail: str
) -> list[tuple[int, bool]] | None:
    """Return position and padding flag of each row of one rank's part of a step, or None at the epoch's end."""
    step = range(consumed, consumed + batch_size * world_size)
    if consumed >= samples or (tail == "drop" and step[-1] >= samples):
        return None
    mine = [k for k in step if (k - consumed) % world_size == rank]
    rows = [(k % samples, k >= samples) for k in mine if tail == "pad" or k < samples]
    return rows or None


def keyhash(shard: bytes, key: bytes) -> bytes:
    """Return BLAKE2b-128 of shard, a zero byte, and key."""
    return blake2b(shard + b"\0" + key, digest_size=16).digest()


def mixed(word: int) -> int:
    """Return SplitMix64's next output for the state ``word``."""
    word = (word + 0x9E3779B97F4A7C15) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


def digest(epoch: int, rows: Sequence[tuple[int, bytes]]) -> int:
    """Return the digest of rows (position, key hash)."""
    total = 0
    for position, hashed in rows:
        low, high = struct.unpack("<QQ", hashed)
        place = mixed(position ^ mixed(epoch))
        total += mixed(low ^ place) + (mixed((high + place) & WORD) << 64)
    return total % (1 << 128)


def header_chunk(code: str, name: str, shape: Sequence[int]) -> bytes:
    """Return the header chunk of an array."""
    padded = code.encode().ljust(8, b"\0") + name.encode().ljust(8, b"\0")
    return padded + struct.pack(f"<q{len(shape)}q", len(shape), *shape)


def framed(chunks: Sequence[bytes]) -> bytes:
    """Return chunks in one buffer: magic, length, bytes, zeros up to a multiple of 64."""
    return b"".join(b"~TenBin~" + struct.pack("<q", len(c)) + c + bytes(-len(c) % 64) for c in chunks)
