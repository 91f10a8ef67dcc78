"""What an FP16 twin keeps in FP32 because calibration saw it come near the end of float16."""

from __future__ import annotations

from pathlib import Path

import onnx

from ..artifacts import MANIFEST, Manifest, decode_json


def fp32_nodes(source: Path, model: onnx.ModelProto) -> list[str]:
    """Nodes of `model` that make or read a tensor listed in the manifest of `source`.

    They are found by name: the graphs of a model call the nodes of one module alike.
    """
    manifest = decode_json(source / MANIFEST, Manifest, do="run `arvg-trt quantize` again")
    listed = {name for t in manifest.results.get("fp32_tensors", ()) for name in t["nodes"]}
    return [node.name for node in model.graph.node if node.name in listed]
