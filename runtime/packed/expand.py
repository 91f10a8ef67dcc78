"""Expand packed weights into the files that they were packed from, a chunk of them at a time."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ...errors import IntegrityError
from ...workspace.files import sha256_file
from ...workspace.stage import Reporter, SilentReporter
from .bits import CHUNK, unpack_indices
from .layout import (
    GET_AGAIN,
    INDEX_FILE,
    WEIGHTS_FILE,
    PackedFile,
    PackedIndex,
    Part,
    read_index,
)

MB = 10**6
EXPANDING = "expanding packed weights, MB"
BLOCK = 2**20  # bytes
ZEROS = bytes(BLOCK)
Progress = Callable[[int, int], None]


def untold(done: int, total: int) -> None:
    """Tell nobody how far it is."""


def megabytes(reporter: Reporter | None, task: str = EXPANDING) -> Progress:
    """Return a progress function of bytes that reports megabytes of a task."""
    told = reporter or SilentReporter()

    def tell(done: int, total: int) -> None:
        told.progress(task, done // MB, max(1, total // MB))

    return tell


def expand_folder(
    folder: Path, index: PackedIndex, output: Path, progress: Progress, where: str | None = None
) -> None:
    """Write the files of an index into `output`, which has none of them, and compare each.

    `progress` is told of bytes; errors call the packed weights `where`, or by their path.

    Raises:
        IntegrityError: the packed weights are cut off, changed, or those of another model.
        OSError: the disk is full.
    """
    weights = folder / WEIGHTS_FILE
    where = where or str(weights)
    require_weights(weights, index, where)
    done = 0
    with weights.open("rb") as stream:
        for file in index.files:
            path = output / file.path
            with path.open("xb") as target:
                if write_file(file, stream, target) != file.sha256:
                    what = f"expands to another {file.path} than {INDEX_FILE} names"
                    raise IntegrityError(what, where=where, do=GET_AGAIN)
            done += file.bytes
            progress(done, index.expanded_bytes)


def expand_in_place(folder: Path, progress: Progress, where: str | None = None) -> None:
    """Expand a packed folder where it lies; its packed weights and their index go."""
    expand_folder(folder, read_index(folder), folder, progress, where)
    for name in (INDEX_FILE, WEIGHTS_FILE):
        (folder / name).unlink()


def require_weights(weights: Path, index: PackedIndex, where: str) -> None:
    """Raise IntegrityError unless the packed weights are those that an index names."""
    if not weights.is_file():
        raise IntegrityError("no such file", where=where, do=GET_AGAIN)
    found = weights.stat().st_size
    if found < index.bytes:
        what = f"is cut off: it has {found:,} bytes of {index.bytes:,}"
        raise IntegrityError(what, where=where, do=GET_AGAIN)
    if found > index.bytes or sha256_file(weights) != index.sha256:
        what = f"was changed, or is of another model: it is not what {INDEX_FILE} names"
        raise IntegrityError(what, where=where, do=GET_AGAIN)


def write_file(file: PackedFile, stream: IO[bytes], target: IO[bytes]) -> str:
    """Write a file from the stored bytes that a stream is at; return its sha256."""
    digest = hashlib.sha256()
    for part in file.parts:
        for block in part_blocks(part, stream):
            digest.update(block)
            target.write(block)
    return digest.hexdigest()


def part_blocks(part: Part, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the zeros in front of a part, then its bytes, from the stored bytes of a stream.

    Raises:
        IntegrityError: they are none of this part.
    """
    for start in range(0, part.gap, BLOCK):
        yield ZEROS[: part.gap - start]
    yield from EXPAND[part.rule](part, stream)


def copied(part: Part, stream: IO[bytes]) -> Iterator[bytes]:
    for start in range(0, part.stored, BLOCK):
        yield stream.read(min(BLOCK, part.stored - start))


def widened(part: Part, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield float16 as float32, which has each of its values."""
    for start in range(0, part.stored, BLOCK):
        half = np.frombuffer(stream.read(min(BLOCK, part.stored - start)), np.float16)
        yield half.astype(np.float32).tobytes()


def shifted(part: Part, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield bfloat16 as float32, whose first half it is."""
    for start in range(0, part.stored, BLOCK):
        halves = np.frombuffer(stream.read(min(BLOCK, part.stored - start)), np.uint16)
        yield (halves.astype(np.uint32) << np.uint32(16)).tobytes()


def inflated(part: Part, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield what zlib packed, and no more of it than the part says."""
    reader = zlib.decompressobj()
    left = part.bytes
    try:
        for start in range(0, part.stored, BLOCK):
            data = stream.read(min(BLOCK, part.stored - start))
            while data:
                block = reader.decompress(data, min(BLOCK, left + 1))
                data = reader.unconsumed_tail
                left -= len(block)
                if left < 0 or (not block and data):
                    raise IntegrityError("a part inflates to too much", do=GET_AGAIN)
                yield block
    except zlib.error as error:
        raise IntegrityError(f"a part is no zlib stream: {error}", do=GET_AGAIN) from error
    if left or not reader.eof:
        raise IntegrityError("a part inflates to too little", do=GET_AGAIN)


def looked_up(part: Part, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the entries of tables [groups, entries] that indices name."""
    kind = np.dtype(f"u{part.size}")
    count = part.groups * part.entries
    table = np.frombuffer(stream.read(count * part.size), kind).reshape(part.groups, part.entries)
    yield from entries_of(part, table, stream)


def levels_of(part: Part, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the levels of logarithmic grids that codes name."""
    scale, ratio = (
        np.frombuffer(stream.read(4 * part.groups), np.float32).astype(np.float64) for _ in range(2)
    )
    yield from entries_of(part, log_levels(scale, ratio, part.bits), stream)


def log_levels(
    scale: NDArray[np.float64], ratio: NDArray[np.float64], bits: int
) -> NDArray[np.float32]:
    """Return sign(q) scale ratio**(n - |q|) [G, 2^bits] of the codes q + 2^(bits-1); 0 for q = 0.

    Powers are products in float64, which round alike on every processor, as a library's `pow` does
    not. They may differ from it in the last bit, which float32 seldom keeps: who packs compares.
    """
    half = 2 ** (bits - 1)
    levels = np.zeros((len(scale), 2 * half), np.float32)
    power = np.ones(len(scale))
    for q in range(half - 1, 0, -1):
        levels[:, half + q] = scale * power
        levels[:, half - q] = -levels[:, half + q]
        power = power * ratio
    return levels


def entries_of(part: Part, table: NDArray[np.generic], stream: IO[bytes]) -> Iterator[bytes]:
    """Yield what the indices of a stream name in tables [groups, entries]."""
    entries, flat = table.shape[1], table.ravel()
    each = part.elements // part.groups  # of a group
    for start in range(0, part.elements, CHUNK):
        count = min(CHUNK, part.elements - start)
        packed = stream.read(-(-count * part.bits // 8))
        index = unpack_indices(packed, part.bits, count)
        if count and int(index.max()) >= entries:
            raise IntegrityError("a part has an index beyond its table", do=GET_AGAIN)
        place = index.astype(np.intp)
        if part.groups > 1:
            group = np.arange(start, start + count)
            place += entries * (group % part.groups if part.columns else group // each)
        yield flat[place].tobytes()


EXPAND: dict[str, Callable[[Part, IO[bytes]], Iterator[bytes]]] = {
    "raw": copied,
    "half": widened,
    "bfloat": shifted,
    "table": looked_up,
    "log": levels_of,
    "deflate": inflated,
}
