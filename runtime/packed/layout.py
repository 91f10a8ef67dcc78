"""Define the packed form of a folder of graphs: its weights in few bits, and an index of them.

`weights.packed` holds the stored bytes of all parts, one after the other, without a header.
`packed.json` says of each file of the folder, in order, which parts make it up, and by which rule
the stored bytes of a part become its bytes in the file. Rules copy, look up, widen or multiply, as
every processor does alike: a folder expands to the same bytes everywhere, which its digests check.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from ...errors import IntegrityError
from ...workspace.files import UNDECODABLE, decode_unique, said
from ...workspace.manifest import MANIFEST
from ...workspace.verify import PACKED_FILE
from ..bundle.layout import Sha256, folded, name_problem

INDEX_FILE, WEIGHTS_FILE = PACKED_FILE, "weights.packed"
MOST_INDEX = 64 * 2**20  # bytes; a tensor takes about 40
MOST_BITS = 8  # of an index into a table
MOST_LEVELS = 2**26  # float32 values that logarithmic grids of a part may have together
SCALE_AND_RATIO = 8  # bytes of both, float32
GET_AGAIN = "do not use it: get the folder or the bundle again from where it was made"

Rule = Literal["raw", "half", "bfloat", "table", "log", "deflate"]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Say how `stored` bytes of the packed weights become `bytes` of a file, behind zeros.

    Attributes:
        gap: zero bytes in front of it, which align tensors.
        rule: ``raw`` copies; ``half`` widens float16 to float32, ``bfloat`` bfloat16;
            ``deflate`` is zlib's;
            ``table`` looks indices of `bits` up in a table of `entries` a group, which comes first;
            ``log`` does so in ``sign(q) scale ratio**(n - |q|)``, of a scale and a ratio a group.
        size: bytes of an element: 1, 2, 4 or 8.
        groups: tables; the elements of one lie together, or every `groups` elements by `columns`.
    """

    gap: Count
    bytes: Count
    rule: Rule
    stored: Count
    size: Count = 1
    bits: Count = 0
    groups: Count = 1
    entries: Count = 0
    columns: bool = False

    @property
    def elements(self) -> int:
        return self.bytes // self.size

    @property
    def packed_indices(self) -> int:
        """Return the bytes of all indices."""
        return -(-self.elements * self.bits // 8)


class PackedFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a file of the expanded folder."""

    path: str
    bytes: Count
    sha256: Sha256
    parts: tuple[Part, ...]


class PackedIndex(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold `packed.json`: the packed weights by their digest, and the files that they become."""

    bytes: Count
    sha256: Sha256
    files: tuple[PackedFile, ...]
    schema: Literal["arvg-trt/packed/v1"] = "arvg-trt/packed/v1"

    @property
    def expanded_bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def is_packed(folder: Path) -> bool:
    """Return whether a folder has an index of packed weights."""
    return (folder / INDEX_FILE).is_file()


def read_index(folder: Path) -> PackedIndex:
    """Read the index of a folder.

    Raises:
        IntegrityError: it is damaged, or contradicts itself.
    """
    path = folder / INDEX_FILE
    if path.stat().st_size > MOST_INDEX:
        raise IntegrityError("is too large to be true", where=str(path), do=GET_AGAIN)
    return parse_index(path.read_bytes(), str(path))


def parse_index(data: bytes, where: str) -> PackedIndex:
    """Return an index; `where` is what errors call it.

    Raises:
        IntegrityError: it is damaged, or contradicts itself.
    """
    try:
        index = decode_unique(data, PackedIndex)
    except UNDECODABLE as error:
        what = f"is no index of packed weights: {said(error)}"
        raise IntegrityError(what, where=where, do=GET_AGAIN) from error
    problem = index_problem(index)
    if problem is not None:
        raise IntegrityError(problem, where=where, do=GET_AGAIN)
    return index


def index_problem(index: PackedIndex) -> str | None:
    """Return the first fault in what an index says; None if there is none."""
    seen = {INDEX_FILE, WEIGHTS_FILE, MANIFEST}
    for file in index.files:
        problem = name_problem(file.path)
        if problem is not None:
            return f"the file {file.path[:100]!r} {problem}"
        if folded(file.path) in seen:
            return f"the file {file.path[:100]!r} is there twice, or is none to be packed"
        seen.add(folded(file.path))
        for number, part in enumerate(file.parts):
            problem = part_problem(part)
            if problem is not None:
                return f"part {number} of {file.path} {problem}"
        if sum(part.gap + part.bytes for part in file.parts) != file.bytes:
            return f"the parts of {file.path} are not its {file.bytes} bytes"
    stored = sum(part.stored for file in index.files for part in file.parts)
    if stored != index.bytes:
        return f"its parts take {stored} bytes of packed weights, and there are {index.bytes}"
    return None


def part_problem(part: Part) -> str | None:
    """Return why a part cannot be expanded as it says; None if it can."""
    if part.size not in (1, 2, 4, 8) or part.bytes % part.size:
        return f"has {part.bytes} bytes, in elements of {part.size}"
    if part.rule in ("half", "bfloat") and part.size != 4:
        return f"has floats of {part.size} bytes"
    if part.rule == "deflate":
        return None
    if part.rule in ("table", "log"):
        if part.bits > MOST_BITS or not part.groups or part.elements % part.groups:
            return f"has indices of {part.bits} bits into {part.groups} tables"
        if part.rule == "log" and (part.size != 4 or part.bits < 2):
            return f"has levels of {part.size} bytes by {part.bits} bits"
        if part.rule == "log" and part.groups << part.bits > MOST_LEVELS:
            return f"has {part.groups} grids of {part.bits} bits, too many to be true"
        if part.rule == "table" and not 1 <= part.entries <= 2**part.bits:
            return f"has {part.entries} entries for {part.bits} bits"
    wanted = STORED[part.rule](part)
    return None if part.stored == wanted else f"takes {wanted} bytes, and says {part.stored}"


# What a part takes of the packed weights, where its other fields say it.
STORED: dict[Rule, Callable[[Part], int]] = {
    "raw": lambda part: part.bytes,
    "half": lambda part: part.bytes // 2,
    "bfloat": lambda part: part.bytes // 2,
    "table": lambda part: part.groups * part.entries * part.size + part.packed_indices,
    "log": lambda part: part.groups * SCALE_AND_RATIO + part.packed_indices,
}
