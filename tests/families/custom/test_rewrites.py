"""Other forms of products, computed constants and odd declarations become plain sites.

The oracle is the file as given in ONNX Runtime, without optimizations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.errors import ExportError
from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.parity import HALF_TOLERANCE, check_custom_graph, relative
from arvg_trt.families.custom.sites import find_custom_sites
from arvg_trt.graph.sites import Site
from arvg_trt.runtime.sessions.onnxruntime import reference_session

from .models import WIDTH, Node, random, small_graph

W = WIDTH
LINE = ("n", 8, 24)


def exported(path: Path) -> tuple[ir.Model, dict[str, Site]]:
    """The canonical graph, compared with the file, and its sites."""
    model = read_custom_graph(path)
    sites = {site.name: site for site in find_custom_sites(model.graph, path.stem)}
    folder = path.parent / f"{path.stem}_out"
    folder.mkdir(exist_ok=True)
    with WeightFile(folder) as weights:
        weights.save(model, path.stem, {})
    onnx.checker.check_model(folder / f"{path.stem}.onnx")
    found = check_custom_graph(path, folder / f"{path.stem}.onnx", model)
    if found.tolerance != HALF_TOLERANCE:
        assert max(found.max_difference.values()) < 1e-5
    return model, sites


Case = tuple[list[Node], dict[str, np.ndarray], tuple[object, ...]]
TWO = np.array([2], np.int64)
ALL_SITES: dict[str, Case] = {
    "alpha and beta": (
        [
            ("Gemm", ["x", "w", "b"], "a", {"alpha": 0.5, "beta": 2.0}),
            ("Gemm", ["a", "w", "b"], "y", {"alpha": 3.0, "transB": 1}),
        ],
        {"w": random(0, W, W), "b": random(1, W)},
        ("n", W),
    ),
    "a transposed input": (
        [("Gemm", ["x", "w"], "y", {"transA": 1})],
        {"w": random(0, 6, 10)},
        (6, W),
    ),
    "a factor without a bias": (
        [("Gemm", ["x", "w"], "y", {"alpha": 0.5, "beta": 7.0})],
        {"w": random(0, W, 10)},
        ("n", W),
    ),
    "einsum": (
        [
            ("Einsum", ["x", "w"], "a", {"equation": "b t k, k n -> b t n"}),
            ("Einsum", ["v", "a"], "c", {"equation": "nk,btk->btn"}),
            ("Einsum", ["c", "w"], "y", {"equation": "...k,kn->...n"}),
        ],
        {"w": random(0, W, W), "v": random(1, W, W)},
        ("n", 6, W),
    ),
    "leading axes of one": (
        [("MatMul", ["x", "w"], "y", {})],
        {"w": random(0, 1, W, 10)},
        ("n", 6, W),
    ),
    "a line, padded, strided and dilated": (
        [
            ("Conv", ["x", "w", "b"], "a", {"pads": [1, 2]}),
            ("Relu", ["a"], "r", {}),
            ("Conv", ["r", "v"], "c", {"strides": [2], "kernel_shape": [3]}),
            ("Sigmoid", ["c"], "g", {}),
            ("Mul", ["c", "g"], "s", {}),
            ("Conv", ["s", "v"], "y", {"dilations": [2], "pads": [2, 2], "kernel_shape": [3]}),
        ],
        {"w": random(0, 16, 8, 3), "v": random(1, 16, 16, 3), "b": random(2, 16)},
        LINE,
    ),
    "automatic padding": (
        [
            ("Conv", ["x", "w"], "a", {"auto_pad": "SAME_UPPER"}),
            ("Conv", ["a", "v"], "b", {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
            ("Conv", ["b", "v"], "y", {"auto_pad": "VALID"}),
        ],
        {"w": random(0, 8, 8, 4, 2), "v": random(1, 8, 8, 2, 2)},
        ("n", 8, 11, 13),
    ),
    "constants that constants compute": (
        [
            ("Constant", [], "size", {"value": numpy_helper.from_array(np.array([W, W]))}),
            (
                "ConstantOfShape",
                ["size"],
                "ones",
                {"value": numpy_helper.from_array(np.ones(1, np.float32))},
            ),
            ("Mul", ["ones", "v"], "scaled", {}),
            ("Split", ["scaled"], "q", {"axis": 1, "num_outputs": 1}),
            ("Cast", ["d"], "w2", {"to": TensorProto.FLOAT}),
            ("DequantizeLinear", ["codes", "step", "zero"], "w3", {"axis": 0}),
            ("MatMul", ["x", "q"], "a", {}),
            ("MatMul", ["a", "w2"], "b", {}),
            ("MatMul", ["b", "w3"], "y", {}),
        ],
        {
            "v": random(0, W, W),
            "d": random(1, W, W).astype(np.float64),
            "codes": np.random.default_rng(2).integers(-99, 99, (W, 10)).astype(np.int8),
            "step": np.linspace(0.01, 0.02, W).astype(np.float32),
            "zero": np.arange(W).astype(np.int8),
        },
        ("n", 6, W),
    ),
    "sizes of zero": (
        [("MatMul", ["x", "w"], "y", {})],
        {"w": random(0, W, 10)},
        (0, 0, W),
    ),
    "sizes of minus one": (
        [("MatMul", ["x", "w"], "y", {})],
        {"w": random(0, W, 10)},
        (-1, -1, W),
    ),
}


@pytest.mark.parametrize("case", ALL_SITES)
def test_other_forms_are_sites_that_compute_the_same(tmp_path: Path, case: str) -> None:
    nodes, constants, x = ALL_SITES[case]
    _, sites = exported(small_graph(tmp_path / "g.onnx", nodes, constants, x=x))
    products = [n for n in nodes if n[0] in ("Conv", "MatMul", "Gemm", "Einsum")]
    assert len(sites) == len(products)
    assert all(site.weight is not None for site in sites.values())


def test_sequence_convolutions_touch_behind_what_works_by_element(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "w"], "a", {"pads": [1, 1]}),
        ("Relu", ["a"], "r", {}),
        ("Conv", ["r", "w"], "y", {"pads": [1, 1]}),
    ]
    model, sites = exported(
        small_graph(tmp_path / "g.onnx", nodes, {"w": random(0, 8, 8, 3)}, x=LINE)
    )
    assert [n.op_type for n in model.graph] == ["Unsqueeze", "Conv", "Relu", "Conv", "Squeeze"]
    assert {site.weight_shape for site in sites.values()} == {(8, 8, 1, 3)}


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    size=st.integers(13, 20),
)
def test_explicit_padding_is_what_onnxruntime_pads(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    kernel: int,
    stride: int,
    size: int,
) -> None:
    folder = tmp_path_factory.mktemp("pad")
    attributes = {"auto_pad": kind, "strides": [stride]}
    path = small_graph(
        folder / "g.onnx",
        [("Conv", ["x", "w"], "y", attributes)],
        {"w": random(0, 4, 3, kernel)},
        x=("n", 3, size),
    )
    _, sites = exported(path)
    assert [site.excluded for site in sites.values()] == [None]


def test_a_question_mark_names_no_dimension(tmp_path: Path) -> None:
    """TensorRT takes two dimensions of one name for equal, and the file's are not."""
    path = small_graph(
        tmp_path / "g.onnx",
        [("Conv", ["x", "w"], "y", {})],
        {"w": random(0, 4, 3, 1, 1)},
        x=("n", 3, "?", "?"),
    )
    model, _ = exported(path)
    shape = model.graph.inputs[0].shape
    assert shape is not None
    assert [getattr(d, "value", d) for d in shape] == ["n", 3, None, None]


def test_local_functions_are_inlined_before_the_opset_is_raised(tmp_path: Path) -> None:
    function = helper.make_function(
        "local",
        "Halve",
        ["a"],
        ["o"],
        [
            helper.make_node("ReduceMean", ["a"], ["m"], axes=[-1], keepdims=1),
            helper.make_node("Sub", ["a", "m"], ["o"]),
        ],
        [helper.make_opsetid("", 13)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Halve", ["x"], ["h"], domain="local"),
            helper.make_node("MatMul", ["h", "w"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, W])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6, 10])],
        [numpy_helper.from_array(random(0, W, 10), "w")],
    )
    model = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("local", 1)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "g.onnx")
    read, sites = exported(tmp_path / "g.onnx")
    assert not read.functions and [s.excluded for s in sites.values()] == [None]


def half_file(path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["a"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["d", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 6, W])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 6, 10])],
        [
            numpy_helper.from_array(random(0, W, W).astype(np.float16), "w"),
            numpy_helper.from_array(random(1, W, 10).astype(np.float16), "v"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_half_files_are_widened_and_keep_the_types_of_their_ends(tmp_path: Path) -> None:
    path = half_file(tmp_path / "half.onnx")
    model, sites = exported(path)
    assert [s.excluded for s in sites.values()] == [None, None]
    ends = (*model.graph.inputs, *model.graph.outputs)
    assert {v.dtype for v in ends} == {ir.DataType.FLOAT16}
    x = random(3, 2, 6, W).astype(np.float16)
    w, v = (random(k, W, n).astype(np.float16).astype(np.float64) for k, n in ((0, W), (1, 10)))
    found = reference_session(tmp_path / "half_out/half.onnx").run({"x": x})["y"]
    assert relative(found, x.astype(np.float64) @ w @ v) < 2e-3  # the output's own rounding


def branch(name: str, sign: int) -> onnx.GraphProto:
    """A weight and inner values of the same names in every branch; an outer value passed on."""
    nodes = [
        helper.make_node("Identity", ["r"], ["same"]),
        helper.make_node("MatMul", ["same", "wb"], ["t"]),
        helper.make_node("Identity", ["t"], ["o"]),
    ]
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    return helper.make_graph(
        nodes, name, [], [out], [numpy_helper.from_array(sign * random(7, W, W), "wb")]
    )


def with_bodies(path: Path) -> Path:
    passed = helper.make_graph(
        [helper.make_node("Identity", ["r"], ["p"])],
        "passed",
        [],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["r"]),
        helper.make_node("ReduceSum", ["r"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["yes"]),
        helper.make_node(
            "If", ["yes"], ["a"], then_branch=branch("one", 1), else_branch=branch("two", -1)
        ),
        helper.make_node("If", ["yes"], ["b"], then_branch=passed, else_branch=branch("three", 2)),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, W])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(random(0, W, W), "w"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def test_bodies_run_as_before_and_no_name_is_used_twice(tmp_path: Path) -> None:
    model, sites = exported(with_bodies(tmp_path / "g.onnx"))
    outside = [site for site in sites.values() if site.weight is not None]
    inside = [site for site in sites.values() if site.weight is None]
    assert (len(outside), len(inside)) == (2, 3) == (len(outside), len(sites) - 2)
    assert {site.excluded for site in inside} == {"it is in the body of a node If"}
    names = [str(node.name) for node in model.graph.all_nodes()]
    values = [str(v.name) for node in model.graph.all_nodes() for v in node.outputs]
    assert len(set(names)) == len(names) and len(set(values)) == len(values)


def test_operators_of_another_domain_are_not_onnxs_own(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "g.onnx",
        [("Conv", ["x", "w"], "a", {}), ("MatMul", ["a", "v"], "y", {})],
        {"w": random(0, 8, 8, 3, 3), "v": random(1, 4, 4)},
        x=("n", 8, 6, 6),
    )
    proto = onnx.load(path)
    proto.graph.node[0].domain = "com.microsoft.nchwc"
    proto.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    onnx.save(proto, path)
    sites = find_custom_sites(read_custom_graph(path).graph, "g")
    reasons = {site.op: site.excluded for site in sites}
    assert reasons["Conv"] == "it is com.microsoft.nchwc::Conv, no operator of ONNX"


def test_large_weights_do_not_pass_the_opset_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protobuf ends at 2 GB, a file with external data does not."""
    from arvg_trt.families.custom import load as own_load

    path = small_graph(
        tmp_path / "g.onnx", [("MatMul", ["x", "w"], "y", {})], {"w": random(0, W, 64)}, opset=17
    )
    seen: list[int] = []

    def convert(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
        seen.append(model.ByteSize())
        return onnx.version_converter.convert_version(model, version)

    monkeypatch.setattr(own_load, "convert_version", convert)
    _, sites = exported(path)
    assert [s.excluded for s in sites.values()] == [None]
    assert max(seen) < 1000 < W * 64 * 4


QDQ: list[Node] = [
    ("QuantizeLinear", ["x", "s", "z"], "q", {}),
    ("DequantizeLinear", ["q", "s", "z"], "d", {}),
    ("DequantizeLinear", ["w", "s", "z"], "wd", {}),
    ("MatMul", ["d", "wd"], "y", {}),
]


@pytest.mark.parametrize(
    ("zero", "said", "do"),
    [
        (np.int8(0), "all zero points 0, int8", "TensorRT and ONNX Runtime take this one"),
        (np.uint8(128), "3 of 3 zero points not 0, such as 128; uint8", "no zero points but 0"),
    ],
)
def test_quantized_files_are_refused_with_their_zero_points(
    tmp_path: Path, zero: np.generic, said: str, do: str
) -> None:
    held = {"s": np.float32(0.02), "z": zero, "w": np.ones((W, W), zero.dtype)}
    path = small_graph(tmp_path / "g.onnx", QDQ, held)
    with pytest.raises(ExportError, match="is already quantized \\(Q/DQ: 1 Quantize") as caught:
        read_custom_graph(path)
    assert said in caught.value.what and do in str(caught.value.do)
    assert caught.value.where == str(path)


def test_integer_operators_and_packed_weights_are_recognised(tmp_path: Path) -> None:
    integer: list[Node] = [("MatMulInteger", ["q", "w", "z", "z"], "y", {})]
    path = small_graph(
        tmp_path / "i.onnx",
        [("Cast", ["x"], "q", {"to": TensorProto.UINT8}), *integer],
        {"w": np.ones((W, W), np.uint8), "z": np.uint8(3)},
    )
    with pytest.raises(ExportError, match=r"integer operators .* 2 of 2 zero points not 0"):
        read_custom_graph(path)
    packed = small_graph(
        tmp_path / "p.onnx", [("MatMul", ["x", "w"], "y", {})], {"w": random(0, W, W)}
    )
    proto = onnx.load(packed)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "MatMulNBits", "com.microsoft"
    onnx.save(proto, packed)
    with pytest.raises(ExportError, match="weight-only: 1 MatMulNBits"):
        read_custom_graph(packed)


def test_infinite_outputs_have_to_be_infinite_in_the_canonical_graph() -> None:
    exact = np.array([1.0, -np.inf, np.nan], np.float32)
    assert relative(exact.copy(), exact) == 0.0
    for index, value in ((0, np.nan), (1, np.inf), (1, 0.0), (2, 1.0)):
        other = exact.copy()
        other[index] = value
        assert not relative(other, exact) <= 1e30


def test_constants_that_cannot_be_evaluated_stay_in_the_graph(tmp_path: Path) -> None:
    """An operator of ONNX Runtime alone on a constant, beside one that folds."""
    path = small_graph(
        tmp_path / "g.onnx",
        [
            ("Inverse", ["w"], "i", {}),
            ("MatMul", ["x", "i"], "a", {}),
            ("Transpose", ["w"], "t", {"perm": [1, 0]}),
            ("MatMul", ["x", "t"], "b", {}),
            ("Add", ["a", "b"], "y", {}),
        ],
        {"w": np.eye(W, dtype=np.float32) * 2},
    )
    proto = onnx.load(path)
    proto.graph.node[0].domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)
    model = read_custom_graph(path)
    reasons = [site.excluded for site in find_custom_sites(model.graph, "g")]
    assert reasons == ["its weight is computed in the graph", None]
