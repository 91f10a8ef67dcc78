"""Read the members of a bundle's tar file, and refuse what a bundle never holds.

Python's `tarfile` reads links, devices, sparse files and several ways to rename what follows; it
ends quietly at a damaged header. A bundle is plain files under fixed names, so its headers alone
are read with `tarfile`, and everything else is refused.
"""

from __future__ import annotations

import re
import tarfile
from typing import IO, NamedTuple

from ...errors import IntegrityError
from .layout import BLOB_NAME, INDEX_FILE, LAYOUT_FILE, REFUSED

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
MOST_MEMBERS = 20_000  # read in 0.3 s; a bundle of four target groups has about a hundred
MOST_END = 2**20  # bytes of zeros at the end; common writers fill up to 10,240
FOLDERS = ("blobs", "blobs/sha256")  # other writers of such layouts add them
GZIP_MARK = b"\x1f\x8b"
SIZE = slice(124, 136)  # of a member, in its header
# Python reads more than octal digits there (a sign, underscores), and other readers do not.
SIZE_FIELD = re.compile(rb"[0-7]{11}[\0 ]|\x80[\0-\xff]{11}", re.DOTALL)
NAME_A_BUNDLE = "name a file that `arvg-trt bundle` wrote"


class Member(NamedTuple):
    """Say where the bytes of a member lie in the file."""

    offset: int
    size: int


def read_members(stream: IO[bytes], where: str) -> dict[str, Member]:
    """Return the members of a tar file by name; none is read.

    Raises:
        IntegrityError: it is no tar file, or is cut off, or has a member that no bundle has.
    """
    end = stream.seek(0, 2)
    members: dict[str, Member] = {}
    folders: set[str] = set()
    offset = padding = 0
    while True:
        stream.seek(offset)
        read = stream.read(padding + BLOCK)
        header, first = read[padding:], offset == 0
        if len(header) < BLOCK:
            raise no_bundle("is no tar file", where) if first else refused("is cut off", where)
        if any(read[:padding]):
            raise refused("has bytes between its files", where)
        offset += len(read)
        if header == ZEROS:
            break
        info = read_header(header, where, first=first)
        if info.isdir() and info.name in FOLDERS and info.name not in folders and info.size == 0:
            folders.add(info.name)
            padding = 0
            continue
        check_member(info, members, where)
        if not 0 <= info.size <= end - offset:
            raise refused(f"is cut off in {info.name}", where)
        members[info.name] = Member(offset, info.size)
        offset += info.size
        padding = -info.size % BLOCK
    require_end(stream, offset - BLOCK, end, where)
    return members


def read_header(header: bytes, where: str, *, first: bool) -> tarfile.TarInfo:
    """Return what a member's header says; raise IntegrityError if its check sum is wrong."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        if first and header.startswith(GZIP_MARK):
            raise no_bundle("is compressed with gzip, which no bundle is", where) from error
        if first:
            raise no_bundle("is no tar file", where) from error
        raise refused("has a damaged header", where) from error
    if not SIZE_FIELD.fullmatch(header[SIZE]):
        raise refused("has a damaged header", where)
    return info


def check_member(info: tarfile.TarInfo, members: dict[str, Member], where: str) -> None:
    """Raise IntegrityError for a member that no bundle has, one too many, or one named twice."""
    shown = info.name[:100]
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise refused(f"holds {shown!r}, which is a link, a folder or no plain file", where)
    known = info.name in (LAYOUT_FILE, INDEX_FILE) or BLOB_NAME.fullmatch(info.name)
    if not known:
        raise refused(f"holds {shown!r}, which no bundle has", where)
    if info.name in members:
        raise refused(f"holds {shown} twice", where)
    if len(members) >= MOST_MEMBERS:
        raise refused(f"holds more than {MOST_MEMBERS:,} files", where)


def require_end(stream: IO[bytes], offset: int, end: int, where: str) -> None:
    """Raise IntegrityError unless two blocks of zeros or a few more follow, as tar files end."""
    stream.seek(offset)
    rest = stream.read(MOST_END)
    zeros = len(rest) - len(rest.lstrip(b"\0"))
    if zeros < len(rest):
        raise refused(f"has {byte_count(end - offset - zeros)} behind its end", where)
    if end - offset > MOST_END:
        raise refused(f"has {byte_count(end - offset - 2 * BLOCK)} behind its end", where)
    if len(rest) < 2 * BLOCK:
        raise refused("is cut off", where)
    if odd := len(rest) % BLOCK:
        also = f"or has {byte_count(odd)} behind its end"
        raise refused(f"is cut off in its last block, {also}", where)


def byte_count(count: int) -> str:
    return f"{count:,} byte{'' if count == 1 else 's'}"


def no_bundle(what: str, where: str) -> IntegrityError:
    """Return the error of something that was never a bundle."""
    return IntegrityError(what, where=where, do=NAME_A_BUNDLE)


def refused(what: str, where: str) -> IntegrityError:
    return IntegrityError(what, where=where, do=REFUSED)
