"""Pack every weight of a quantized model into weights.safetensors, in as few bytes as possible.

Quantized weights are packed bits with scale (and ratio) beside them; high-precision weights are
float16, biases and norm parameters float32. Fixed transforms (Haar) and the FSQ table are not
weights and are not stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import WorkspaceError
from .scheme import WeightFormat
from .weight import QuantizedWeight

SCHEMA = "arvg-trt/weights/v1"
HEADER = "arvg-trt"
PACKED = 2**20  # values whose bits are packed at once: they take 8 bytes each
Size = Annotated[int, msgspec.Meta(ge=1)]


class SiteHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Say the shape of a packed weight, and the format of its values."""

    shape: tuple[Size, ...]
    format: WeightFormat


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """List the packed weights of a file by site."""

    schema: Literal["arvg-trt/weights/v1"]
    sites: dict[str, SiteHeader]


def save_packed_weights(
    quantized: Mapping[str, QuantizedWeight],
    floats: Mapping[str, NDArray[np.generic]],
    path: Path,
) -> None:
    """Write packed weights by site name and the float tensors as they are."""
    tensors: dict[str, NDArray[np.generic]] = dict(floats)
    header: dict[str, object] = {}
    for site, weight in quantized.items():
        tensors[f"{site}.weight_q"] = pack_bits(weight.q, weight.format.bits)
        # Scales of blocks are float16.
        half = weight.format.block is not None
        tensors[f"{site}.weight_scale"] = weight.scale.astype(np.float16 if half else np.float32)
        if weight.ratio is not None:
            tensors[f"{site}.log_ratio"] = weight.ratio
        if weight.factor is not None:
            tensors[f"{site}.weight_factor"] = weight.factor
        header[site] = {
            "shape": list(weight.q.shape),
            "format": msgspec.to_builtins(weight.format),
        }
    # One metadata key: safetensors writes several in random order.
    # It would write arrays that are not contiguous in the order of memory.
    held = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    data = save(held, metadata={HEADER: json.dumps({"schema": SCHEMA, "sites": header})})
    path.write_bytes(data)  # save_file hides the errno of a full disk


def load_packed_weights(
    path: Path,
) -> tuple[dict[str, QuantizedWeight], dict[str, NDArray[np.generic]]]:
    """Read what `save_packed_weights` wrote.

    Raises:
        WorkspaceError: the file is damaged.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            said = (file.metadata() or {}).get(HEADER, "")
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
        header = msgspec.json.decode(said, type=Header)
        return {
            site: read_site(tensors, site, entry) for site, entry in header.sites.items()
        }, tensors
    except (
        SafetensorError,
        msgspec.MsgspecError,
        RecursionError,
        LookupError,
        ValueError,
    ) as error:
        raise WorkspaceError(
            f"cannot be read: {error}", where=str(path), do="run `arvg-trt quantize` again"
        ) from error


def read_site(
    tensors: dict[str, NDArray[np.generic]], site: str, entry: SiteHeader
) -> QuantizedWeight:
    """Take a site's tensors out; raise LookupError or ValueError if they do not fit."""
    packed = tensors.pop(f"{site}.weight_q")
    wanted = -(-math.prod(entry.shape) * entry.format.bits // 8)
    if packed.dtype != np.uint8 or packed.size != wanted:
        raise ValueError(f"{site} has {packed.nbytes} packed bytes, its shape needs {wanted}")
    found = QuantizedWeight(
        entry.format,
        unpack_bits(packed.astype(np.uint8, copy=False), entry.format.bits, entry.shape),
        tensors.pop(f"{site}.weight_scale").astype(np.float32),
        optional(tensors, f"{site}.log_ratio"),
        optional(tensors, f"{site}.weight_factor"),
    )
    require_sizes(found, site)
    return found


def require_sizes(weight: QuantizedWeight, site: str) -> None:
    """Raise ValueError for scales that are not of as many channels or blocks as the weight has."""
    channels, count = weight.q.shape[0], weight.scale.size
    one = weight.format.granularity == "per_tensor"
    if weight.format.block is None:
        fits = count == (1 if one else channels)
    else:
        block = weight.format.block
        fits = weight.scale.shape[:1] == (channels,) and weight.q.size == count * block
    beside = {"ratios": (weight.ratio, count), "factors": (weight.factor, channels)}
    for name, (given, wanted) in beside.items():
        if given is not None and given.size != wanted:
            raise ValueError(f"{site} has {given.size} {name}, not {wanted}")
    if not fits:
        raise ValueError(f"{site} has {count} scales, which do not fit its shape {weight.q.shape}")


def optional(tensors: dict[str, NDArray[np.generic]], name: str) -> NDArray[np.float32] | None:
    found = tensors.pop(name, None)
    return None if found is None else found.astype(np.float32)


def pack_bits(q: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Pack integers of `bits` bits into ceil(size * bits / 8) bytes, high bits first."""
    packed = np.empty(-(-q.size * bits // 8), np.uint8)
    for rows in byte_parts(q):
        start = rows.start * (q.size // max(1, len(q))) * bits // 8
        unsigned = (q[rows].ravel().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
        planes = np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :]
        part = np.packbits(planes.ravel())
        packed[start : start + len(part)] = part
    return packed


def byte_parts(q: NDArray[np.int8]) -> Iterator[slice]:
    """Yield slices of the first axis, each of a number of rows that 8 divides but for the last.

    So each part begins a byte, whatever the bits.
    """
    step = max(8, PACKED * len(q) // max(1, q.size) // 8 * 8)
    for start in range(0, len(q), step):
        yield slice(start, start + step)


def unpack_bits(blob: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Return the int8 values of `shape` that `pack_bits` packed."""
    q = np.empty(shape, np.int8)
    for rows in byte_parts(q):
        size = q[rows].size
        start = rows.start * (q.size // len(q)) * bits // 8
        planes = np.unpackbits(blob[start:], count=size * bits).reshape(size, bits)
        unsigned = np.packbits(planes, axis=1, bitorder="big").ravel() >> (8 - bits)
        part = (unsigned.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)
        q[rows] = part.reshape(q[rows].shape)
    return q
