"""Find where the tensors of a folder's graphs lie in its files of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from ...errors import WorkspaceError
from ...graph.io import all_tensors, read_proto, require_weights


@dataclass(frozen=True, slots=True)
class Region:
    """Hold the bytes that a tensor has in a file of weights, and how they are read.

    `size` is the bytes of an element; two of four bits share a byte, as ONNX packs them, and
    `shape` then counts bytes. `few_bits` says that a grid made it: integers of 8 bits or fewer, or
    FP8. Bytes that no tensor reads have no name.
    """

    offset: int
    bytes: int
    size: int = 1
    shape: tuple[int, ...] = ()
    few_bits: bool = False
    names: tuple[str, ...] = ()


def find_regions(folder: Path) -> dict[str, list[Region]]:
    """Return the tensors of all graphs of a folder, by the file they lie in, in its order.

    Where tensors share some of their bytes, those bytes are one region without a shape.

    Raises:
        WorkspaceError: a graph is damaged, or its weights are missing or too short.
    """
    found: dict[str, dict[tuple[int, int], Region]] = {}
    for path in sorted(folder.glob("*.onnx")):
        proto = read_proto(path)
        require_weights(proto, path, WorkspaceError)
        for tensor in all_tensors(proto):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                add_region(found.setdefault(place["location"], {}), tensor, place)
    return {name: separate(places) for name, places in sorted(found.items())}


def add_region(
    places: dict[tuple[int, int], Region], tensor: onnx.TensorProto, place: Mapping[str, str]
) -> None:
    kind = ir.DataType(tensor.data_type)
    shape = tuple(int(n) for n in tensor.dims)
    elements = 1
    for n in shape:
        elements *= n
    count = -(-elements * kind.bitwidth // 8)
    key = (int(place.get("offset") or 0), count)
    known = places.get(key)
    size = kind.bitwidth // 8
    if size not in (1, 2, 4, 8):  # two or four a byte, or complex numbers
        size, shape = 1, (count,)
    few_bits = kind.bitwidth <= 8 and kind != ir.DataType.BOOL
    names = () if known is None else known.names
    if count:
        places[key] = Region(*key, size, shape, few_bits, (*names, tensor.name))


def separate(places: Mapping[tuple[int, int], Region]) -> list[Region]:
    """Return regions by their offset, those that overlap as one."""
    found: list[Region] = []
    for region in sorted(places.values(), key=lambda each: (each.offset, each.bytes)):
        before = found[-1] if found else None
        if before is not None and region.offset < before.offset + before.bytes:
            end = max(before.offset + before.bytes, region.offset + region.bytes)
            found[-1] = Region(before.offset, end - before.offset)
        else:
            found.append(region)
    return found
