"""Measure how fast ONNX Runtime moves weights and multiplies on this machine's processor."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from ...runtime.sessions.open import SLOW_OPTIMIZERS, open_session
from ...runtime.sessions.processors import cpu_fields
from ..onnxruntime.build import rewrite_graph
from .machine import Machine, ProductFormat

SECONDS = 20.0
# One row of a weight that no cache holds is as fast as its bytes; many rows of one that fits are
# as fast as the multiplications.
LONG, SQUARE = (1, 4096, 8192), (512, 1024, 1024)
OPSET, IR_VERSION = 21, 10


def probe(progress: Callable[[str, int, int], None], seconds: float = SECONDS) -> Machine:
    """Measure bandwidth, and operations a second in FP32 and INT8, for about `seconds`.

    Kinds of runs take turns, so that a busy moment hits all of them; each figure is a median.
    """
    runs = {
        "bandwidth": linear_run("fp32", *LONG),
        "fp32": linear_run("fp32", *SQUARE),
        "w8a8": linear_run("w8a8", *SQUARE),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or len(taken["w8a8"]) < 3:
        progress("probing", min(int(passed), int(seconds)), int(seconds))
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - begun)
    progress("probing", int(seconds), int(seconds))
    median = {name: statistics.median(each) for name, each in taken.items()}
    operations = 2.0 * np.prod(SQUARE, dtype=np.float64)
    peaks: dict[ProductFormat, float] = {
        "fp32": float(operations / median["fp32"]),
        "w8a8": float(operations / median["w8a8"]),
    }
    return Machine(
        name=cpu_fields().get("model name") or platform.machine(),
        bandwidth=4.0 * LONG[1] * LONG[2] / median["bandwidth"],
        peaks=peaks,
        source=f"measured with ONNX Runtime, {len(taken['w8a8'])} rounds ({date.today()})",
    )


def linear_run(form: ProductFormat, rows: int, depth: int, width: int) -> Callable[[], object]:
    """Return a function that runs one linear layer, FP32 or W8A8 as our engine computes it."""
    graph = linear_graph(form, rows, depth, width)
    path = Path(f"{form}.onnx")
    session = open_session(path, optimized=True, graph=graph, disabled=SLOW_OPTIMIZERS)
    feeds = {"x": np.random.default_rng(0).standard_normal((rows, depth), np.float32)}
    return lambda: session.run(feeds)


def linear_graph(form: ProductFormat, rows: int, depth: int, width: int) -> bytes:
    """Return the ONNX bytes of a linear layer with a random weight, rewritten for ONNX Runtime."""
    random = np.random.default_rng(1)
    nodes, constants = [], {}
    if form == "fp32":
        constants["w"] = random.standard_normal((depth, width), np.float32)
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"], name="product"))
    else:
        constants |= {
            "w_q": random.integers(-127, 128, (depth, width), np.int8),
            "w_scale": np.full(width, 0.01, np.float32),
            "w_zero": np.zeros(width, np.int8),
            "x_scale": np.array(0.03, np.float32),
            "x_zero": np.array(0, np.int8),
        }
        quantize, pair = "QuantizeLinear", "DequantizeLinear"
        nodes += [
            helper.make_node(quantize, ["x", "x_scale", "x_zero"], ["x_q"], name="quantize"),
            helper.make_node(pair, ["x_q", "x_scale", "x_zero"], ["x_dq"], name="dequantize"),
            helper.make_node(pair, ["w_q", "w_scale", "w_zero"], ["w_dq"], name="weight", axis=1),
            helper.make_node("MatMul", ["x_dq", "w_dq"], ["y"], name="product"),
        ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION))
    if form != "fp32":
        rewrite_graph(model, {})
    proto: onnx.ModelProto = ir.to_proto(model)
    return bytes(proto.SerializeToString())
