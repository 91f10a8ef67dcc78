"""Faults that a test puts into a quantized workspace: a spoiled scale, a weight of NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from arvg_trt.workspace.files import digest_files, encode_json
from arvg_trt.workspace.manifest import MANIFEST, Manifest


def spoil(folder: Path, graph: str, initializer: str, change: Callable[[NDArray], NDArray]) -> None:
    """Change a constant of a Q/DQ graph, whose manifest then says so: a fault, not damage."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    held = next(each for each in model.graph.initializer if each.name == initializer)
    before = numpy_helper.to_array(held, str(folder))
    after = np.asarray(change(before.copy()), before.dtype)
    assert after.shape == before.shape
    held.CopyFrom(numpy_helper.from_array(after, initializer))
    onnx.save(model, path)
    manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    now = digest_files(folder, [path])
    renewed = msgspec.structs.replace(manifest, outputs={**manifest.outputs, **now})
    (folder / MANIFEST).write_bytes(encode_json(renewed))
