"""Read the members of a bundle's tar file, and refuse what a bundle never holds.

Python's `tarfile` reads links, devices, sparse files and several ways to rename what follows; it
ends quietly at a damaged header. A bundle is plain files under fixed names, so its headers alone
are read with `tarfile`, and everything else is refused.
"""

from __future__ import annotations

import tarfile
from typing import IO, NamedTuple

from ...errors import IntegrityError
from .layout import BLOB_NAME, INDEX_FILE, LAYOUT_FILE, REFUSED

BLOCK = tarfile.BLOCKSIZE
MOST_MEMBERS = 100_000
FOLDERS = ("blobs", "blobs/sha256")  # other writers of such layouts add them


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
    offset = 0
    while True:
        if offset + BLOCK > end:
            raise refused("is no tar file" if not members else "is cut off", where)
        stream.seek(offset)
        header = stream.read(BLOCK)
        if not any(header):
            break
        info = read_header(header, where, first=offset == 0)
        offset += BLOCK
        if info.isdir() and info.name.rstrip("/") in FOLDERS and info.size == 0:
            continue
        check_member(info, members, where)
        if not 0 <= info.size <= end - offset:
            raise refused(f"is cut off in {info.name}", where)
        members[info.name] = Member(offset, info.size)
        offset += -(-info.size // BLOCK) * BLOCK
    require_end(stream, offset, where)
    return members


def read_header(header: bytes, where: str, *, first: bool) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise refused("is no tar file" if first else "has a damaged header", where) from error


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


def require_end(stream: IO[bytes], offset: int, where: str) -> None:
    """Raise IntegrityError unless zeros alone follow, as tar files end."""
    stream.seek(offset)
    while rest := stream.read(2**20):
        if any(rest):
            raise refused("goes on behind its end", where)


def refused(what: str, where: str) -> IntegrityError:
    return IntegrityError(what, where=where, do=REFUSED)
