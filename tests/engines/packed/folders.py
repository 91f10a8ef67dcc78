"""Small folders of graphs whose weights lie in files beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from arvg_trt.graph.weight_file import SharedWeights
from arvg_trt.numerics.packing import save_packed_weights
from arvg_trt.numerics.scheme import WeightFormat
from arvg_trt.numerics.weight import QuantizedWeight, quantize_weight
from arvg_trt.runtime.packed.layout import PackedIndex

SIDE = 64


def linears(*weights: tuple[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """Return x @ w1 @ w2 ..., with INT8 weights behind a DequantizeLinear."""
    nodes, constants, value = [], [], "x"
    for k, (name, weight) in enumerate(weights):
        constants.append(onnx.numpy_helper.from_array(weight, name))
        held = name
        if weight.dtype == np.int8:
            constants.append(onnx.numpy_helper.from_array(np.float32(0.01), f"{name}.scale"))
            held = f"{name}.float"
            nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}.scale"], [held]))
        nodes.append(helper.make_node("MatMul", [value, held], [f"y{k}"]))
        value = f"y{k}"
    shape = [1, SIDE]
    graph = helper.make_graph(
        nodes,
        "linears",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def quantized_folder(folder: Path, seed: int = 0) -> Path:
    """Write two graphs with a shared file of weights: 4 bits, logarithmic, and float ones."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(SIDE, SIDE)).astype(np.float32)
    log = quantize_weight(weight, WeightFormat(bits=4, grid="log"))
    uniform = quantize_weight(weight, WeightFormat(bits=4))
    tensors = {
        "fc1.weight_q": np.ascontiguousarray(uniform.q.T),
        "fc2.weight_log": np.ascontiguousarray(log.dequantize().T),
        "head": weight,
        "half": weight.astype(np.float16).astype(np.float32)[::-1].copy(),
    }
    known: dict[str, QuantizedWeight] = {"fc1": uniform, "fc2": log}
    save_packed_weights(known, {"head": weight}, folder / "weights.safetensors")
    with SharedWeights(folder) as file:
        for name, used in (("first", list(tensors)), ("second", ["fc1.weight_q", "head"])):
            model = linears(*((each, tensors[each]) for each in used))
            file.write(ir.from_proto(model), name)
    (folder / "generator.json").write_text("{}\n")
    return folder


def contents(folder: Path, index: PackedIndex) -> dict[str, bytes]:
    return {file.path: (folder / file.path).read_bytes() for file in index.files}
