"""Read arrays of a `.npz`: stored ones are mapped, compressed ones are bounded in size.

The sizes that a file claims are compared with each other and with the machine's memory before any
memory is allocated, so that a few bytes cannot ask for many.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
import sys
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

# Floats of real data shrink by a third, masks of ones a thousandfold: that is a bomb once it is
# large.
MOST_EXPANSION, FREE_EXPANSION = 100, 64 * 2**20
MOST_ROWS = 2**31
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# Errors that zipfile and numpy raise for damaged files.
DAMAGED = (
    *(OSError, ValueError, EOFError, TypeError, SyntaxError, RecursionError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, NotImplementedError),
)


class BadArrays(ValueError):
    """Report a file that is no `.npz` of arrays, or must not be read; `do` is the advice."""

    def __init__(self, what: str, do: str | None = None) -> None:
        super().__init__(what)
        self.do = do


def read_npz(path: Path) -> dict[str, Array]:
    """Return every array of a `.npz` by name, read-only.

    Raises:
        BadArrays: not a `.npz` of arrays, damaged, or compressed arrays that do not fit in half of
            this machine's memory or expand like a bomb.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return read_members(path, archive)
    except BadArrays:
        raise
    except DAMAGED as error:
        with path.open("rb") as stream:
            single = stream.read(6) == b"\x93NUMPY"
        what = "holds one array without a name" if single else "is not a .npz of arrays"
        raise BadArrays(what) from error


def read_npy(path: Path) -> Array:
    """Return the array of a `.npy`, mapped and read-only.

    Raises:
        BadArrays: not such a file, or one that holds less than it claims.
    """
    try:
        with path.open("rb") as stream:
            return mapped(path, stream, path.stat().st_size)
    except BadArrays:
        raise
    except DAMAGED as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise BadArrays(lines[0][:200]) from error


def read_members(path: Path, archive: zipfile.ZipFile) -> dict[str, Array]:
    members: dict[str, Array] = {}
    packed: list[tuple[str, zipfile.ZipInfo]] = []
    names: list[str] = []  # in the order of the file
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            raise BadArrays(f"{name[:100]!r} is no array")
        if name in names:
            raise BadArrays(f"{name[:100]!r} is there twice")
        names.append(name)
        if info.compress_type == zipfile.ZIP_STORED:
            members[name] = mapped_array(path, info)
        else:
            packed.append((name, info))
    require_bounded(packed)
    for name, info in packed:
        with archive.open(info) as stream:
            shape, order, dtype = read_header(stream, info.file_size)
            data = stream.read()
        members[name] = np.frombuffer(data, dtype, math.prod(shape)).reshape(shape, order=order)
    return {name: members[name] for name in names}


def require_bounded(packed: list[tuple[str, zipfile.ZipInfo]]) -> None:
    """Raise BadArrays for compressed arrays that expand too much."""
    stored = "write the file with numpy.savez, which leaves arrays in the file"
    for name, info in packed:
        times = info.file_size / max(1, info.compress_size)
        if info.file_size > FREE_EXPANSION and times > MOST_EXPANSION:
            raise BadArrays(f"{name} expands {times:,.0f}-fold to {info.file_size:,} bytes", stored)
    total = sum(info.file_size for _, info in packed)
    if total > memory() // 2:
        raise BadArrays(
            f"its compressed arrays expand to {total:,} bytes, more than half of this machine's "
            "memory",
            stored,
        )


def memory() -> int:
    """Return the bytes of memory of this machine."""
    if sys.platform == "win32":
        kilobytes = ctypes.c_ulonglong()
        ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return kilobytes.value * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def mapped_array(path: Path, info: zipfile.ZipInfo) -> Array:
    """Return a stored member as a memory map, read-only."""
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)  # where a local file header has its lengths
        name_length, extra_length = struct.unpack("<HH", stream.read(4))
        stream.seek(name_length + extra_length, os.SEEK_CUR)
        return mapped(path, stream, info.file_size)


def mapped(path: Path, stream: IO[bytes], size: int) -> Array:
    """Map the array of `size` bytes, header included, that begins at the stream's position."""
    shape, order, dtype = read_header(stream, size)
    if not math.prod(shape):
        return np.empty(shape, dtype)
    found = np.memmap(path, dtype, "r", stream.tell(), shape, order)
    return found.reshape(shape, order=order)  # numpy maps no number, but an array of one


def read_header(
    stream: IO[bytes], size: int
) -> tuple[tuple[int, ...], Literal["F", "C"], np.dtype[Any]]:
    """Read shape, order and type of an array of `size` bytes, header included.

    Raises:
        BadArrays: objects, or a shape that is not of so many bytes.
    """
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise BadArrays(f"has an array of the unknown version {version} of numpy's format")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no warnings of headers that Python 2 may have written
        shape, fortran, dtype = HEADERS[version](stream)
    if dtype.hasobject:
        raise BadArrays("holds Python objects, which are not read")
    if any(axis < 0 for axis in shape) or (shape and shape[0] > MOST_ROWS):
        raise BadArrays(f"has the shape {list(shape)}")
    if math.prod(shape) * dtype.itemsize != size - (stream.tell() - start):
        raise BadArrays(f"claims {dtype} {list(shape)} in {size:,} bytes")
    return shape, "F" if fortran else "C", dtype
