"""Read and write integers of 0 to 8 bits that follow each other without gaps, high bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**20  # integers at a time; a multiple of 8, so that each chunk ends with a byte

Indices = NDArray[np.uint8]


def pack_indices(indices: Indices, bits: int) -> bytes:
    """Return ceil(size * bits / 8) bytes that hold integers below 2**bits."""
    flat = indices.ravel()
    chunks = (pack_chunk(flat[k : k + CHUNK], bits) for k in range(0, flat.size, CHUNK))
    return b"".join(chunk.tobytes() for chunk in chunks)


def pack_chunk(indices: Indices, bits: int) -> Indices:
    """Return integers as bytes; eight of them share `bits` bytes, which are cut out of a word."""
    if bits in (0, 8):
        return indices[: indices.size * bits // 8]
    rows = -(-indices.size // 8)
    padded = np.zeros(rows * 8, np.uint8)
    padded[: indices.size] = indices
    word = np.zeros(rows, np.uint64)
    for column in padded.reshape(rows, 8).T:
        word = (word << np.uint64(bits)) | column
    found = np.empty((rows, bits), np.uint8)
    for k in range(bits):
        found[:, k] = word >> np.uint64(8 * (bits - 1 - k)) & np.uint64(0xFF)
    return found.ravel()[: -(-indices.size * bits // 8)]


def unpack_indices(packed: bytes, bits: int, count: int) -> Indices:
    """Return the first `count` integers."""
    data = np.frombuffer(packed, np.uint8)
    if bits == 0:
        return np.zeros(count, np.uint8)
    if 8 % bits:
        return unpack_eights(data, bits).ravel()[:count]
    each = 8 // bits
    shifted = np.empty((len(data), each), np.uint8)
    for k in range(each):
        shifted[:, k] = (data >> (8 - bits * (k + 1))) & (2**bits - 1)
    return shifted.ravel()[:count]


def unpack_eights(data: Indices, bits: int) -> Indices:
    """Return integers in rows of eight, which share `bits` bytes.

    A word each, out of which they are shifted: more than twice as fast as planes of single bits.
    """
    rows = -(-len(data) // bits)
    padded = np.zeros(rows * bits, np.uint8)
    padded[: len(data)] = data
    word = np.zeros(rows, np.uint64)
    for byte in padded.reshape(rows, bits).T:
        word = (word << np.uint64(8)) | byte
    found = np.empty((rows, 8), np.uint8)
    for k in range(8):
        found[:, k] = (word >> np.uint64(bits * (7 - k))) & np.uint64(2**bits - 1)
    return found
