"""FP16 twins of a workspace's graphs: what TensorRT builds, and what stands for it in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...graph.sites import Site
from ...pipeline.common import load_sites
from ...quantize.overflow_nodes import Listed, fp32_nodes, listed_tensors
from ...runtime.generator import FULL
from ...validate.report.schema import QDQ, TWIN
from ...workspace.artifacts import MANIFEST, Manifest, decode_json

if TYPE_CHECKING:
    from .half_precision import HalfType

LARGE = 1024  # bytes, from which a constant lies beside the graph


def write_twin(
    source: Path, graph: str, sites: Sequence[Site], target: Path, wide: Listed, half: HalfType
) -> Path:
    """The twin of a graph of `source`, in `target`; what `wide` lists and codes stay in FP32."""
    import onnx

    from .half_precision import fp16_twin

    decide = [site.node for site in sites if site.role == "codes"]
    model = onnx.load(source / f"{graph}.onnx")
    twin = fp16_twin(model, keep_fp32=[*decide, *fp32_nodes(wide, model)], dtype=half)
    path = target / f"{graph}.onnx"
    onnx.save(
        twin,
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=LARGE,
    )
    return path


def with_full_twin(export: Path, folders: Mapping[str, Path], made: Path) -> Mapping[str, Path]:
    """`folders` of candidates, where engines have a twin that of all positions in `made`.

    Nothing is built from it, so that it lies beside no engine; nodes and weights are the steps'.
    """
    quantized = folders[QDQ]
    if TWIN not in folders or not (quantized / f"{FULL}.onnx").is_file():
        return folders
    manifest = decode_json(quantized / MANIFEST, Manifest, do="run `arvg-trt quantize` again")
    made.mkdir()
    sites = load_sites(export).of_graph(FULL)
    write_twin(quantized, FULL, sites, made, listed_tensors(manifest), "float16")
    return {**folders, TWIN: made}
