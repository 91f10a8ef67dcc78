"""Write beside every engine the EPContext model by which ONNX Runtime opens it.

Such a model is one node, which names the engine's file; its inputs, outputs and metadata are those
of the half-precision copy that the engine was built from. So an application opens an engine like a
graph, and what reads a graph's metadata finds the same there. The attributes are those that the
providers themselves write: TensorRT for RTX in src/onnx_ctx_model_helper.cc of
NVIDIA/TensorRT-RTX-EP-ABI (0.5.0), TensorRT in core/providers/tensorrt/onnx_ctx_model_helper.cc of
microsoft/onnxruntime.

An engine has one optimization profile, from the smallest shapes to the largest: it serves the first
step and the later ones, and nothing has to choose among several.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.sessions.open import context_path
from ...runtime.sessions.placement import PROVIDERS
from ...runtime.trt_compat import Backend
from ...workspace.files import atomic_write, sha256_file
from ...workspace.verify import GENERATOR_FILE
from .targets import Target

if TYPE_CHECKING:
    from onnx import ModelProto

DOMAIN, OPERATOR = "com.microsoft", "EPContext"
RTX_SDK_VERSION = "1.0"  # a constant of the plug-in, whichever TensorRT for RTX it brings
DIGITS = 16  # of the engine's sha256: the plug-in names the file of its cache by the partition


def write_context_models(
    source: Path, folder: Path, graphs: Iterable[str], backend: Backend, group: Sequence[Target]
) -> None:
    """Write `NAME_ctx.onnx` for the engine and the half-precision copy of each graph in `folder`.

    `generator.json` of `source`, where there is one, goes there too: the folder then is a whole
    generator.
    """
    for graph in graphs:
        path = folder / f"{graph}.onnx"
        model = context_model(path, folder / f"{graph}.engine", backend, group)
        atomic_write(context_path(path), model.SerializeToString(deterministic=True))
    if (source / GENERATOR_FILE).is_file():
        shutil.copyfile(source / GENERATOR_FILE, folder / GENERATOR_FILE)


def context_model(
    graph: Path, engine: Path, backend: Backend, group: Sequence[Target]
) -> ModelProto:
    """Return the EPContext model of an engine that was built from `graph` for these targets."""
    import onnx
    from onnx import helper

    built = onnx.load(graph, load_external_data=False)
    constants = {tensor.name for tensor in built.graph.initializer}
    inputs = [value for value in built.graph.input if value.name not in constants]
    name = f"{graph.stem}_{sha256_file(engine)[:DIGITS]}"
    node = helper.make_node(
        OPERATOR,
        [value.name for value in inputs],
        [value.name for value in built.graph.output],
        name=name,
        domain=DOMAIN,
        **attributes(name, graph, engine, backend, group),
    )
    model = helper.make_model(
        helper.make_graph([node], built.graph.name, inputs, list(built.graph.output)),
        ir_version=built.ir_version,
        opset_imports=[
            *(each for each in built.opset_import if each.domain in ("", "ai.onnx")),
            helper.make_opsetid(DOMAIN, 1),
        ],
        producer_name="arvg-trt",
    )
    model.metadata_props.extend(built.metadata_props)
    return model


def attributes(
    name: str, graph: Path, engine: Path, backend: Backend, group: Sequence[Target]
) -> dict[str, Any]:
    """Return the node's attributes, as the provider of the back end writes them.

    Providers write the compute capability of their one GPU; an engine for several lists them all,
    at which TensorRT's provider would warn and that for RTX does not look.
    """
    common: dict[str, Any] = {
        "embed_mode": 0,
        "ep_cache_context": engine.name,  # relative to the model's folder; others are refused
        "hardware_architecture": " ".join(str(target.compute_capability) for target in group),
        "onnx_model_filename": graph.name,
        "partition_name": name,
        "main_context": 0,  # each engine stands alone
        "source": PROVIDERS[backend],
    }
    if backend == "tensorrt":
        return common
    return common | {"ep_sdk_version": RTX_SDK_VERSION, "ep_context_op_domain": DOMAIN}
