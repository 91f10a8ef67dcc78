"""Describe the files of an OpenVINO engine; OpenVINO itself is not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

RECORD = "openvino.json"


class CompiledGraph(msgspec.Struct, frozen=True, kw_only=True):
    """Say what the graph says of itself, and whether its blob lies beside it.

    `in_float`: its products are computed in floats, since OpenVINO's integers are others.
    """

    metadata: dict[str, str] = {}
    has_blob: bool = True
    in_float: bool = False


class CompiledGraphs(msgspec.Struct, frozen=True, kw_only=True):
    """Say by which release and for which processor the blobs of a folder were compiled."""

    version: str
    processor: str
    precision: Literal["f32", "bf16"]
    graphs: dict[str, CompiledGraph]
    schema: Literal["arvg-trt/openvino/v1"] = "arvg-trt/openvino/v1"


def blob_path(graph: Path) -> Path:
    """Return where the blob of a graph lies: step.blob for step.onnx."""
    return graph.with_suffix(".blob")


def is_openvino(folder: Path) -> bool:
    """Return whether a folder holds an engine of OpenVINO."""
    return (folder / RECORD).is_file()
