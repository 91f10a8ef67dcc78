from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from arvg_trt.engines.tensorrt.preflight import (
    BASE_MEMORY,
    Estimate,
    available_memory,
    estimate,
    require_room,
)
from arvg_trt.engines.tensorrt.products import Product, Products, read_products
from arvg_trt.errors import OutOfMemory, WorkspaceError

HEADER = '<ir_version: 10, opset_import: ["" : 21]>'


def products(tmp_path: Path, text: str, **profiles: tuple[int, ...]) -> Products:
    """Read a graph in ONNX's text form at one shape of each input."""
    onnx.save(onnx.parser.parse_model(f"{HEADER} {text}"), tmp_path / "g.onnx")
    return read_products(tmp_path / "g.onnx", {n: (s, s, s) for n, s in profiles.items()})


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        (
            "g (float[n,3,4] x, float[4,5] w) => (float[n,3,5] y) { y = MatMul(x, w) }",
            2 * 3 * 4 * 5,
        ),
        ("g (float[n,3,4] x, float[2,4,5] w) => (float[2,3,5] y) {y=MatMul(x, w)}", 2 * 3 * 4 * 5),
        ("g (float[n,3] x, float[7,3] w) => (float[n,7] y) {y=Gemm<transB=1>(x, w)}", 2 * 3 * 7),
        ("g (float[3,n] x, float[3,7] w) => (float[2,7] y) {y=Gemm<transA=1>(x, w)}", 2 * 3 * 7),
        (
            "g (float[n,4,5,6] x, float[8,2,3,3] w) => (float[n,8,3,4] y) {y=Conv<group=2>(x, w)}",
            2 * 8 * 3 * 4 * 2 * 9,
        ),
        (
            "g (float[n,4,5,6] x, float[4,2,3,3] w) => (float[n,2,7,8] y) {y=ConvTranspose(x, w)}",
            2 * 4 * 5 * 6 * 2 * 9,
        ),
        (
            "g (float[n,3,4] x, float[n,5,4] w) => (float[2,3,5] y) "
            '{y=Einsum<equation="bik,bjk->bij">(x, w)}',
            2 * 3 * 5 * 4,
        ),
    ],
)
def test_multiplications_are_counted_at_the_profile(tmp_path: Path, text: str, macs: int) -> None:
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    shapes = {
        value.name: tuple(a.dim_value or 2 for a in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    assert [p.macs for p in products(tmp_path, text, **shapes).products] == [macs]


def test_shapes_behind_a_check_of_sizes_and_a_group_norm_are_known(tmp_path: Path) -> None:
    """ONNX's inference propagates no Max, and gives a GroupNormalization no shape."""
    text = """g (float[n,4,s] x, float[4] a, float[4] b, float[6,4,1] w) => (float[n,6,s] y)
    <int64[1] least = {8}, int64[1] four = {4}> {
      head = Shape<end = 1>(x)
      size = Shape<start = 2>(x)
      checked = Max(size, least)
      whole = Concat<axis = 0>(head, four, checked)
      same = Reshape(x, whole)
      norm = GroupNormalization<num_groups = 2>(same, a, b)
      y = Conv(norm, w)
    }"""
    assert [p.macs for p in products(tmp_path, text, x=(3, 4, 16)).products] == [3 * 6 * 16 * 4]


def test_a_shape_that_depends_on_values_is_not_guessed(tmp_path: Path) -> None:
    text = """g (float[4,4] x, int64[2] to, float[4,5] w) => (float[a,5] y) {
      t = Reshape(x, to)
      y = MatMul(t, w)
    }"""
    assert [p.macs for p in products(tmp_path, text).products] == [None]


def test_a_weight_is_of_the_type_that_its_dequantize_reads(tmp_path: Path) -> None:
    text = """g (float[2,4] x, float[2,4] z) => (float[2,4] y, float[2,4] p) {
      w = DequantizeLinear(q, s)
      turned = Transpose<perm = [1, 0]>(w)
      y = MatMul(x, turned)
      p = MatMul(z, f)
    }"""
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    held = {"q": np.ones((4, 4), np.int8), "s": np.array(1, np.float32), "f": np.eye(4, dtype="f4")}
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in held.items())
    for node, name in zip(model.graph.node, ("dq", "t", "int8", "float"), strict=True):
        node.name = name
    onnx.save(model, tmp_path / "g.onnx")
    assert read_products(tmp_path / "g.onnx", {}).products == (
        Product("int8", "MatMul", 32, "int8", "dq"),
        Product("float", "MatMul", 32),
    )


def test_only_a_softmax_in_front_of_a_product_is_an_attention(tmp_path: Path) -> None:
    text = """g (float[2,4] x, float[4,4] w) => (float[2,4] y, float[2,4] z) {
      p = Softmax(x)
      t = Identity(p)
      y = MatMul(t, w)
      z = Softmax(y)
    }"""
    model = onnx.parser.parse_model(f"{HEADER} {text}")
    model.graph.node[0].name, model.graph.node[3].name = "attention", "classes"
    onnx.save(model, tmp_path / "g.onnx")
    assert read_products(tmp_path / "g.onnx", {}).attentions == ("attention",)


def test_an_estimate_counts_what_the_half_precision_copy_holds(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        f"{HEADER} g (float[2,1000] x) => (float[2,1000] y) {{ y = MatMul(x, w) }}"
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1000, 1000), "f4"), "w"))
    onnx.save(model, tmp_path / "float.onnx")
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1000, 1000), "i1"), "w"))
    onnx.save(model, tmp_path / "int8.onnx")
    both = estimate([tmp_path / "float.onnx", tmp_path / "int8.onnx"], 2)
    assert both.memory == BASE_MEMORY + 3.7 * 2e6  # that of the largest
    assert both.disk == round(2.04 * 3e6) * 2
    assert estimate([], 1) == Estimate(BASE_MEMORY, 0, 0)


def test_a_build_without_room_is_refused_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_room(Estimate(10**6, 10**3, 1), tmp_path)
    free = available_memory()
    if free is not None:
        with pytest.raises(OutOfMemory, match=r"about \d+\.\d GB of memory, and .* GB are free"):
            require_room(Estimate(free * 2, 0, 1), tmp_path)
    with pytest.raises(WorkspaceError, match=r"about \d+\.\d\d GB of disk, and .* GB are free"):
        require_room(Estimate(0, 10**18, 1), tmp_path)
    monkeypatch.setattr("arvg_trt.engines.tensorrt.preflight.MEMORY_FILE", tmp_path / "none")
    assert available_memory() is None
    require_room(Estimate(10**18, 0, 1), tmp_path)  # what is not known stops nothing


@pytest.mark.parametrize(
    ("memory", "seconds", "large", "text"),
    [
        (3 * 10**8, 8, False, "0.3 GB of memory, 0.01 GB of disk, under a minute"),
        (3 * 10**8, 120, True, "0.3 GB of memory, 0.01 GB of disk, about 2.0 min"),
        (6 * 10**9, 8, True, "6.0 GB of memory, 0.01 GB of disk, under a minute"),
    ],
)
def test_a_large_build_is_announced(memory: int, seconds: int, large: bool, text: str) -> None:
    found = Estimate(memory, 10**7, seconds)
    assert (found.is_large, str(found)) == (large, text)
