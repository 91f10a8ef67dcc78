"""The memory of an export, beside mapped files, does not grow with the weights.

What constants compute from a weight takes little more than one of them and its result.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from .watched import WATCH

LAYERS, WIDTH = 8, 2048
WEIGHTS = LAYERS * WIDTH * WIDTH * 4
SIDE = 4096  # of the one weight that constants compute
ONE = SIDE * SIDE * 4

EXPORT = (
    WATCH
    + """
from arvg_trt.api import Workspace
from arvg_trt.quantize import fold_check
from arvg_trt.families.custom import canonical, export, parity, sites
from arvg_trt.export import weight_file
from arvg_trt.pipeline.export import judges

judges()  # imports
fold_check.MAPPED_BYTES = 2**24
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
Workspace(sys.argv[2]).export("onnx", graphs=[sys.argv[1]])
print(max(seen) - before)
"""
)


def write(folder: Path) -> Path:
    """Write a chain of products, each with a fold into the weight of the one before."""
    noise = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32) / 45
    nodes, weights = [], []
    with (folder / "weights").open("wb") as stream:
        for k in range(LAYERS):
            stream.write((noise + k / 1e3).tobytes())
            name, size = f"w{k}", WIDTH * WIDTH * 4
            weight = TensorProto(
                name=name, data_type=1, dims=(WIDTH, WIDTH), data_location=TensorProto.EXTERNAL
            )
            for key, value in (("location", "weights"), ("offset", k * size), ("length", size)):
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [f"x{k}", name], [f"m{k}"]))
            nodes.append(helper.make_node("Relu", [f"m{k}"], [f"x{k + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])
        for name in ("x0", f"x{LAYERS}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]  # which has to be raised
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "chain.onnx")
    return folder / "chain.onnx"


def write_folded(folder: Path, chain: str) -> Path:
    """Write one product whose weight `w` the nodes of `chain` compute from a mapped `q` or `f`."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[n, {SIDE}] x) => (float[n, {SIDE}] y) {{ {chain} y = MatMul(x, w) }}"""
    )
    small = {
        "s": np.full(SIDE, 1e-2, np.float32),
        "z": np.full(SIDE, 3, np.int8),
        "g": np.ones((SIDE, 1), np.float32),
        "axes": np.array([1]),
    }
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name)
        for name, value in small.items()
        if any(name in node.input for node in model.graph.node)
    )
    kind, name = (np.int8, "q") if "(q" in chain else (np.float32, "f")
    with (folder / "weights").open("wb") as stream:
        for _ in range(SIDE):
            stream.write((100 * rng.standard_normal(SIDE)).clip(-127, 127).astype(kind).tobytes())
    weight = model.graph.initializer.add(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(np.dtype(kind)),
        dims=(SIDE, SIDE),
        data_location=TensorProto.EXTERNAL,
    )
    weight.external_data.add(key="location", value="weights")
    onnx.save(model, folder / "folded.onnx")
    return folder / "folded.onnx"


def peak(path: Path, workspace: Path) -> int:
    """Return the most anonymous memory that an export takes, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, str(path), str(workspace)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's figures")
@pytest.mark.parametrize(
    "chain",
    [
        "w = DequantizeLinear<axis = 1>(q, s, z)",
        "n = ReduceL2(f, axes) d = Div(f, n) v = Mul(d, g) w = Transpose<perm = [1, 0]>(v)",
    ],
    ids=["quantized", "weight norm"],
)
def test_a_weight_that_constants_compute_takes_twice_its_size(tmp_path: Path, chain: str) -> None:
    """One array and what is made of it: three and more of each before."""
    path = write_folded(tmp_path, chain)
    assert peak(path, tmp_path / "ws") < 2.4 * ONE


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's figures")
def test_an_export_takes_no_copy_of_the_weights(tmp_path: Path) -> None:
    """A few of 8 weights of 16 MB exist at a time; all of them in one copy would be 128 MB."""
    path = write(tmp_path)
    assert peak(path, tmp_path / "ws") < 0.9 * WEIGHTS
