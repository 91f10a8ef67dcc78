"""Choose the rule by which a tensor takes the fewest bytes, of those that lose nothing.

A rule counts only if what it stores was expanded here and gave the same bytes. So it does not
matter how a graph was rewritten since its weights were rounded: what has few values is found by
its values, in Q/DQ graphs as in engines and half-precision copies.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...numerics.parts import parts
from ...numerics.weight import QuantizedWeight
from ...runtime.packed.bits import pack_indices
from ...runtime.packed.expand import part_blocks
from ...runtime.packed.layout import MOST_LEVELS, Part
from .regions import Region

MOST_ENTRIES = 256
SAMPLE = 4096  # elements that are looked at before all are sorted
SAMPLE_ROWS = 4
ROWS_AT_ONCE = 2**20  # elements that are sorted at a time
# Distinct values a row, by their bytes, from which a table and indices take no fewer bytes.
WORTH_TABLES = {1: 1.0, 2: 0.5, 4: 0.75, 8: 0.875}
DEFLATE_SAMPLE = 2**16  # bytes
# Weights of a trained model deflate to 0.9 of their bytes; masks and tables of positions to less
# than a tenth. Below this share it is worth the time that it takes.
WORTH_DEFLATING = 0.5
LOG_SUFFIX = ".weight_log"  # of the name of a logarithmic weight in Q/DQ graphs and engines

Words = NDArray[np.unsignedinteger]


class Stored(NamedTuple):
    """Hold a part, and its bytes among the packed weights."""

    part: Part
    data: bytes


def store(region: Region, data: bytes, gap: int, known: Mapping[str, QuantizedWeight]) -> Stored:
    """Return a tensor by the rule that takes the fewest bytes.

    `known` are the quantized weights of the model by site: the scale and ratio of a logarithmic
    grid are not read off its levels.
    """
    plain = Stored(Part(gap, len(data), "raw", len(data)), data)
    if not region.names:
        return plain
    for levels in as_levels(region, data, gap, known):
        if expands_to(levels, data):
            return levels  # no other takes as few
    candidates = [make(region, data, gap) for make in MAKERS]
    smaller = [each for each in candidates if each and len(each.data) < len(data)]
    least = min((len(each.data) for each in smaller), default=len(data))
    if not region.few_bits and is_worth_deflating(data, least):
        smaller.append(deflated(data, gap))
    for each in sorted(smaller, key=lambda found: len(found.data)):
        if expands_to(each, data):
            return each
    return plain


def expands_to(stored: Stored, data: bytes) -> bool:
    """Return whether a part expands to the bytes that it was made of."""
    blocks = part_blocks(stored.part, io.BytesIO(stored.data))
    return b"".join(blocks) == bytes(stored.part.gap) + data


def as_half(region: Region, data: bytes, gap: int) -> Stored | None:
    """Return float32 that float16 holds exactly, as scales of blocks and rounded weights."""
    if region.size != 4 or region.few_bits:
        return None
    with np.errstate(all="ignore"):  # integers read as floats may be anything
        half = np.frombuffer(data, np.float32).astype(np.float16)
        if half.astype(np.float32).tobytes() != data:
            return None
    return Stored(Part(gap, len(data), "half", len(data) // 2, 4), half.tobytes())


def as_bfloat(region: Region, data: bytes, gap: int) -> Stored | None:
    """Return float32 that bfloat16 holds exactly, as what stays of a checkpoint in bfloat16."""
    if region.size != 4 or region.few_bits:
        return None
    words = np.frombuffer(data, np.uint32)
    if (words & 0xFFFF).any():
        return None
    halves = (words >> 16).astype(np.uint16)
    return Stored(Part(gap, len(data), "bfloat", len(data) // 2, 4), halves.tobytes())


def as_levels(
    region: Region, data: bytes, gap: int, known: Mapping[str, QuantizedWeight]
) -> Iterator[Stored]:
    """Yield a logarithmic weight as the codes, scales and ratios that it may have been made of.

    Linears hold it transposed, which the shape of a square one does not say.
    """
    names = [name for name in region.names if name.endswith(LOG_SUFFIX)]
    weight = known.get(names[0].removesuffix(LOG_SUFFIX)) if names else None
    if weight is None or not weight.is_logarithmic or region.size != 4:
        return
    bits, scale = weight.format.bits, weight.scale.astype(np.float32)
    if scale.size << bits > MOST_LEVELS:
        return
    ratio = np.full_like(scale, 0.5) if weight.ratio is None else weight.ratio
    tables = scale.tobytes() + ratio.astype(np.float32).tobytes()
    for columns, q in ((False, weight.q), (True, weight.q.T)):
        if q.shape == region.shape:
            codes = (q.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
            stored = tables + pack_indices(codes, bits)
            part = Part(gap, len(data), "log", len(stored), 4, bits, scale.size, 0, columns)
            yield Stored(part, stored)


def as_table(region: Region, data: bytes, gap: int) -> Stored | None:
    """Return few values as a table of them for the whole tensor, and an index each."""
    words = np.frombuffer(data, f"u{region.size}")
    if region.size == 1:
        return tabled_bytes(words, gap)
    return tabled(words[None, :], words.size, gap, columns=False)


def tabled_bytes(words: NDArray[np.uint8], gap: int) -> Stored | None:
    """Return integers of 8 bits that are fewer, as of a grid of 4 bits, with a table of them."""
    # Counted in parts: numpy widens what it counts to eight bytes each.
    counts = sum(np.bincount(words[part], minlength=MOST_ENTRIES) for part in parts(words))
    values = np.flatnonzero(counts).astype(np.uint8)
    bits = (len(values) - 1).bit_length()
    if bits == 8:
        return None
    places = np.zeros(MOST_ENTRIES, np.uint8)
    places[values] = np.arange(len(values))
    stored = values.tobytes() + pack_indices(places[words], bits)
    part = Part(gap, words.size, "table", len(stored), 1, bits, 1, len(values))
    return Stored(part, stored)


def as_rows(region: Region, data: bytes, gap: int) -> Stored | None:
    """Return few values along the first axis as a table for each of its places."""
    if region.size == 1 or len(region.shape) < 2:
        return None
    words = np.frombuffer(data, f"u{region.size}").reshape(region.shape[0], -1)
    return tabled(words, words.size, gap, columns=False)


def as_columns(region: Region, data: bytes, gap: int) -> Stored | None:
    """Return few values along the last axis as a table for each of its places."""
    if region.size == 1 or len(region.shape) < 2:
        return None
    words = np.frombuffer(data, f"u{region.size}").reshape(-1, region.shape[-1])
    return tabled(words.T, words.size, gap, columns=True)


def tabled(words: Words, count: int, gap: int, *, columns: bool) -> Stored | None:
    """Return words [groups, M] as a table a group and indices, None where there are too many."""
    groups, size = len(words), words.dtype.itemsize
    for row in words[:SAMPLE_ROWS]:
        seen = row[:SAMPLE]
        if len(np.unique(seen)) > min(MOST_ENTRIES, WORTH_TABLES[size] * len(seen)):
            return None
    tables, index = [], np.empty(words.shape, np.uint8)
    step = max(1, ROWS_AT_ONCE // words.shape[1])
    for start in range(0, groups, step):
        for row in range(start, min(start + step, groups)):
            values, places = np.unique(words[row], return_inverse=True)
            if len(values) > MOST_ENTRIES:
                return None
            tables.append(values)
            index[row] = places
    entries = max(map(len, tables))
    bits = (entries - 1).bit_length()
    table = np.zeros((groups, entries), words.dtype)
    for row, values in enumerate(tables):
        table[row, : len(values)] = values
    flat = index.T if columns else index
    stored = table.tobytes() + pack_indices(np.ascontiguousarray(flat), bits)
    part = Part(
        gap, count * size, "table", len(stored), size, bits, groups, entries, columns and groups > 1
    )
    return Stored(part, stored)


def is_worth_deflating(data: bytes, least: int) -> bool:
    """Return whether the first bytes of data say that zlib packs it into fewer than `least`.

    Masks, tables of positions, what repeats itself. Codes of weights are not tried: of Gaussian
    ones in 4 bits it saves a tenth, at 10 MB a second.
    """
    sample = data[:DEFLATE_SAMPLE]
    share = len(zlib.compress(sample)) / max(1, len(sample))
    return share < WORTH_DEFLATING and share * len(data) < least


def deflated(data: bytes, gap: int = 0) -> Stored:
    """Return bytes as zlib packs them."""
    stored = zlib.compress(data)
    return Stored(Part(gap, len(data), "deflate", len(stored)), stored)


Maker = Callable[[Region, bytes, int], "Stored | None"]
MAKERS: tuple[Maker, ...] = (as_half, as_bfloat, as_table, as_rows, as_columns)
