"""Pack every weight of a quantized model into weights.safetensors, in as few bytes as possible.

Quantized weights are packed bits with scale (and ratio) beside them; high-precision weights are
float16, biases and norm parameters float32. Fixed transforms (Haar) and the FSQ table are not
weights and are not stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from .scheme import WeightFormat
from .weight import QuantizedWeight, pack_bits, unpack_bits

SCHEMA = "arvg-trt/weights/v1"
HEADER = "arvg-trt"


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
    """Read what `save_packed_weights` wrote."""
    with safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()[HEADER])["sites"]
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    quantized = {}
    for site, entry in header.items():
        weight_format = msgspec.convert(entry["format"], WeightFormat)
        q = unpack_bits(tensors.pop(f"{site}.weight_q"), weight_format.bits, tuple(entry["shape"]))
        quantized[site] = QuantizedWeight(
            weight_format,
            q,
            tensors.pop(f"{site}.weight_scale").astype(np.float32),
            tensors.pop(f"{site}.log_ratio", None),
            tensors.pop(f"{site}.weight_factor", None),
        )
    return quantized, tensors
