"""Write the packed form of a folder of graphs: its index, and its weights in as few bytes."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...errors import WorkspaceError
from ...numerics.packing import load_packed_weights
from ...numerics.weight import QuantizedWeight
from ...runtime.packed.expand import Progress, untold
from ...runtime.packed.layout import (
    INDEX_FILE,
    WEIGHTS_FILE,
    PackedFile,
    PackedIndex,
    index_problem,
)
from ...runtime.sessions.open import context_path
from ...workspace.files import sha256_file
from .regions import Region, find_regions
from .rules import Stored, deflated, store

SITE_WEIGHTS = "weights.safetensors"
FEW_BITS, HIGH_PRECISION, GRAPHS = "few_bits", "high_precision", "graphs"


@dataclass(frozen=True, slots=True)
class PackedSizes:
    """Count the bytes of a packed folder of graphs.

    Attributes:
        few_bits: codes of weights on a grid, and other tensors of few values, with their tables.
        high_precision: what stays floats, scales too, in as many bytes as lose nothing.
        graphs: their nodes, names and small constants.
        index: the list of all tensors.
    """

    few_bits: int
    high_precision: int
    graphs: int
    index: int


def known_weights(folder: Path) -> dict[str, QuantizedWeight]:
    """Return the quantized weights of a model by site; none where they are not in the folder."""
    path = folder / SITE_WEIGHTS
    return load_packed_weights(path)[0] if path.is_file() else {}


def pack_folder(
    folder: Path,
    output: Path,
    known: Mapping[str, QuantizedWeight],
    progress: Progress = untold,
) -> tuple[PackedIndex, PackedSizes]:
    """Write the index and the packed weights of a folder's graphs to another folder.

    `known` are the quantized weights by site, and `progress` is told of bytes. The index lists
    what is replaced: graphs and their files of weights. Other files of the folder stay as they are,
    EPContext models too: without them a folder with engines packs to the same bytes as a kit of the
    same graphs, and a bundle holds those bytes once.

    Raises:
        WorkspaceError: a graph is damaged, or its weights are missing, too short or not beside it.
    """
    regions = find_regions(folder)
    graphs = graphs_of(folder)
    total = sum((folder / name).stat().st_size for name in (*graphs, *regions))
    sizes = dict.fromkeys((FEW_BITS, HIGH_PRECISION, GRAPHS), 0)
    files: list[PackedFile] = []
    digest, done = hashlib.sha256(), 0
    with (output / WEIGHTS_FILE).open("wb") as target:
        for name in (*graphs, *regions):
            path = folder / name
            parts = []
            for kind, stored in stored_parts(path, regions.get(name), known):
                parts.append(stored.part)
                sizes[kind] += len(stored.data)
                digest.update(stored.data)
                target.write(stored.data)
                done += stored.part.gap + stored.part.bytes
                progress(done, total)
            file = PackedFile(
                path=name,
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
                parts=tuple(parts),
            )
            files.append(file)
    stored_bytes = sum(sizes.values())
    index = PackedIndex(bytes=stored_bytes, sha256=digest.hexdigest(), files=tuple(files))
    problem = index_problem(index)
    if problem is not None:
        do = "save the graph with its weights beside it"
        raise WorkspaceError(f"cannot be packed: {problem}", where=str(folder), do=do)
    data = msgspec.json.encode(index)
    (output / INDEX_FILE).write_bytes(data)
    return index, PackedSizes(**sizes, index=len(data))


def graphs_of(folder: Path) -> list[str]:
    """Return the names of a folder's graphs, without the EPContext models beside engines."""
    names = {path.name for path in folder.glob("*.onnx")}
    contexts = {context_path(folder / name).name for name in names}
    return sorted(names - contexts)


def stored_parts(
    path: Path, regions: Sequence[Region] | None, known: Mapping[str, QuantizedWeight]
) -> Iterator[tuple[str, Stored]]:
    """Yield what a file is stored as, and which kind of bytes; without regions it is a graph."""
    if regions is None:
        yield GRAPHS, deflated(path.read_bytes())
        return
    with path.open("rb") as stream:
        if not path.stat().st_size:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for region, gap in covered(data, regions):
                tensor = data[region.offset : region.offset + region.bytes]
                stored = store(region, tensor, gap, known)
                on_grid = region.few_bits or stored.part.rule in ("table", "log")
                yield FEW_BITS if on_grid else HIGH_PRECISION, stored


def covered(data: mmap.mmap, regions: Sequence[Region]) -> Iterator[tuple[Region, int]]:
    """Yield regions that make up a whole file, each with the zeros in front of it.

    Bytes between tensors that are no zeros, and those behind the last, are regions without names.
    """
    end = 0
    for region in (*regions, Region(len(data), 0)):
        gap = region.offset - end
        if gap and data[end : region.offset].strip(b"\0"):
            yield Region(end, gap), 0
            gap = 0
        if gap or region.bytes:
            yield region, gap
        end = region.offset + region.bytes
