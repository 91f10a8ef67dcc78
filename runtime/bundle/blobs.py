"""Read the blobs of a bundle's tar file, each compared with the digest that names it."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

from ...errors import WorkspaceError
from ...workspace.files import UNDECODABLE, decode_unique, said
from .archive import NAME_A_BUNDLE, Member, no_bundle, read_members, refused
from .layout import BLOBS, MOST_GROUPS, Descriptor

MOST_JSON = 8 * 2**20  # bytes of an index, a manifest, `bundle.json` or a signature
BLOCK = 2**20

T = TypeVar("T")


class BlobStore:
    """Give access to the members of a bundle's tar file, which stays open.

    Errors are IntegrityErrors that name the file, but for one that is not there.
    """

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise WorkspaceError("no such file", where=self.where, do=NAME_A_BUNDLE) from None
        if not stat.S_ISREG(mode):  # a pipe cannot be searched, and may never end
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise no_bundle(f"is {kind}, not a bundle", self.where)
        self._stream: IO[bytes] = path.open("rb")
        try:
            self.members: dict[str, Member] = read_members(self._stream, self.where)
        except BaseException:
            self._stream.close()
            raise

    def close(self) -> None:
        self._stream.close()

    def member(self, name: str) -> Member:
        """Return where a member lies."""
        if name not in self.members:
            raise refused(f"lacks {name}", self.where)
        return self.members[name]

    def sized(self, descriptor: Descriptor) -> Member:
        """Return the member of a descriptor, which must have the size that it says."""
        member = self.member(descriptor.blob)
        if member.size != descriptor.size:
            what = f"{descriptor.blob} has {member.size} bytes, not {descriptor.size}"
            raise refused(what, self.where)
        return member

    def read(self, descriptor: Descriptor) -> bytes:
        """Return a small blob, compared with its digest."""
        data = self._small(self.sized(descriptor), descriptor.blob)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != descriptor.digest:
            raise refused(f"{descriptor.blob} was changed: its digest differs", self.where)
        return data

    def require_few(self, descriptors: Sequence[Descriptor], kind: str) -> None:
        """Raise IntegrityError unless a few blobs are named, each once and small together.

        Without it one blob named thousands of times would be decoded thousands of times.
        """
        if len({descriptor.digest for descriptor in descriptors}) != len(descriptors):
            raise refused(f"names one of its {kind} twice", self.where)
        size = sum(descriptor.size for descriptor in descriptors)
        if len(descriptors) > MOST_GROUPS or size > MOST_JSON:
            what = f"has {len(descriptors)} {kind} of {size} bytes, too many to be true"
            raise refused(what, self.where)

    def decode(self, descriptor: Descriptor, kind: type[T]) -> T:
        """Return the JSON of a blob as a struct."""
        return self.parse(self.read(descriptor), kind, descriptor.blob)

    def decode_member(self, name: str, kind: type[T]) -> T:
        """Return the JSON of a member without a digest in its name."""
        return self.parse(self._small(self.member(name), name), kind, name)

    def parse(self, data: bytes, kind: type[T], name: str) -> T:
        """Return JSON as a struct; `name` is what errors call it."""
        try:
            return decode_unique(data, kind)
        except UNDECODABLE as error:
            raise refused(f"{name} cannot be read: {said(error)}", self.where) from error

    def copy(self, name: str, target: IO[bytes] | None, shown: str) -> int:
        """Read a blob once, into `target` where there is one; return its size.

        Raises:
            IntegrityError: its digest is another; calls it `shown`.
        """
        member = self.member(name)
        digest = hashlib.sha256()
        self._stream.seek(member.offset)
        left = member.size
        while left:
            block = self._stream.read(min(BLOCK, left))
            if not block:
                raise refused(f"is cut off in {shown}", self.where)
            digest.update(block)
            if target is not None:
                target.write(block)
            left -= len(block)
        if BLOBS + digest.hexdigest() != name:
            raise refused(f"{shown} was changed: its digest differs", self.where)
        return member.size

    @contextlib.contextmanager
    def mapped(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of a member where they lie in the file; nothing is read in advance."""
        member = self.member(name)
        with (
            mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ) as tar,
            memoryview(tar) as view,
            view[member.offset : member.offset + member.size] as part,
        ):
            yield part

    def _small(self, member: Member, name: str) -> bytes:
        if member.size > MOST_JSON:
            raise refused(f"{name} has {member.size} bytes, too many to be true", self.where)
        self._stream.seek(member.offset)
        return self._stream.read(member.size)
