"""Products of a custom graph become sites with their roles, or say why they are left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.families.custom.canonical import read_custom_graph
from arvg_trt.families.custom.sites import FIRST_OR_LAST, find_custom_sites
from arvg_trt.graph.sites import Site

from .models import WIDTH, Node, random, small_graph

W = WIDTH


def sites_of(path: Path) -> dict[str, Site]:
    return {s.name: s for s in find_custom_sites(read_custom_graph(path).graph, path.stem)}


def test_sites_of_a_torch_transformer_are_its_modules(
    custom_files: dict[str, tuple[Path, ...]],
) -> None:
    found = sites_of(custom_files["transformer"][0])
    roles = {name: site.role for name, site in found.items()}
    block = {
        "attn.qkv": "qkv",
        "attn.bmm_qk": "bmm_qk",
        "attn.bmm_pv": "bmm_pv",
        "attn.proj": "proj",
        "fc1": "linear",
        "fc2": "linear",
    }
    wanted = {f"blocks.{i}.{name}": role for i in range(2) for name, role in block.items()}
    assert roles == wanted | {"head": "linear"}
    assert {name for name, s in found.items() if s.excluded} == {
        name for name in wanted if "bmm" in name
    }
    for name, site in found.items():
        if site.weight is not None:
            assert (site.token_axis, site.channel_axis, site.op) == (1, 2, "MatMul")
            assert (site.weight, site.bias) == (f"{name}.weight", f"{name}.bias")
            assert site.node == name


def test_sites_without_metadata_have_the_same_structure(
    custom_files: dict[str, tuple[Path, ...]],
) -> None:
    found = sites_of(custom_files["handmade"][0])
    by_role: dict[str, list[str]] = {}
    for name, site in found.items():
        by_role.setdefault(site.role, []).append(name)
    assert by_role["qkv"] == ["layer.attn.q", "layer.attn.k", "layer.attn.v"]
    assert by_role["proj"] == ["attn.proj"]
    assert by_role["linear"] == ["mlp_up", "mlp_gate", "mlp_down", "classifier"]
    assert len(by_role["bmm_qk"]) == len(by_role["bmm_pv"]) == 1
    assert set(found["layer.attn.q"].shares_input_with) == {"layer.attn.k", "layer.attn.v"}
    assert found["classifier"].token_axis is None and found["classifier"].channel_axis == 1


def test_ends_of_a_convolutional_graph_and_odd_convolutions_stay_out(
    custom_files: dict[str, tuple[Path, ...]],
) -> None:
    encoder, decoder = (sites_of(path) for path in custom_files["autoencoder"])
    reasons = {name: site.excluded for name, site in (encoder | decoder).items()}
    ends = {"conv_in", "conv_out"}
    assert {name for name, reason in reasons.items() if reason == FIRST_OR_LAST} == ends
    assert encoder["conv_in"].weight == "conv_in.weight"
    assert reasons["depthwise"] == "a convolution in groups"
    assert "transposed convolution" in str(reasons["up"])
    assert decoder["up"].weight is decoder["depthwise"].weight is None
    assert [name for name, reason in reasons.items() if reason is None] == [
        *("squeeze", "down", "mix", "conv")
    ]


def one(op: str, weight: str = "w", **attributes: object) -> list[Node]:
    return [(op, ["x", weight], "y", attributes)]


IMAGE = ("n", 8, 6, 6)
# A weight that depends on the input.
SCALED: list[Node] = [
    ("ReduceMean", ["x"], "m", {"keepdims": 0}),
    ("Mul", ["w", "m"], "s", {}),
]
CASES: dict[str, tuple[list[Node], dict[str, np.ndarray], tuple[object, ...], str]] = {
    "computed": (
        [("Transpose", ["x"], "t", {"perm": [0, 2, 1]}), ("MatMul", ["x", "t"], "y", {})],
        {},
        ("n", 6, W),
        "a product of two activations",
    ),
    "left": ([("MatMul", ["w", "x"], "y", {})], {"w": random(0, 6, 6)}, ("n", 6, W), "on the left"),
    "batched": (
        one("MatMul"),
        {"w": random(0, 2, W, W)},
        (2, 6, W),
        f"the shape of its weight is [2, {W}, {W}], no matrix",
    ),
    "vector": (one("MatMul"), {"w": random(0, W)}, ("n", 6, W), f"is [{W}], no matrix"),
    "beta": (
        [
            ("ReduceMean", ["x"], "m", {"keepdims": 0}),
            ("Gemm", ["x", "w", "m"], "y", {"beta": 0.5}),
        ],
        {"w": random(0, W, W)},
        ("n", W),
        "a factor (beta) on a bias that is computed",
    ),
    "row": (one("MatMul"), {"w": random(0, W, W)}, (W,), "its input is a vector"),
    "einsum": (
        one("Einsum", equation="btk,tkn->btn"),
        {"w": random(0, 6, W, W)},
        ("n", 6, W),
        "the Einsum btk,tkn->btn is no product of an activation's last axis with a matrix",
    ),
    "recurrent": (
        [("LSTM", ["x", "w", "r"], "y", {"hidden_size": 4})],
        {"w": random(0, 1, 16, W), "r": random(1, 1, 16, 4)},
        ("n", 6, W),
        "engines compute an LSTM in one kernel of floats",
    ),
    "groups": (
        one("Conv", group=2),
        {"w": random(0, 8, 4, 3, 3)},
        IMAGE,
        "a convolution in groups",
    ),
    "transposed": (
        one("ConvTranspose"),
        {"w": random(0, 8, 4, 3, 3)},
        IMAGE,
        "engines have no integer form of a transposed convolution",
    ),
    "volume": (
        one("Conv"),
        {"w": random(0, 8, 8, 3, 3, 3)},
        ("n", 8, 6, 6, 6),
        "a convolution over 3 axes, not one or two",
    ),
    "auto_pad": (
        one("Conv", auto_pad="SAME_UPPER", strides=[2, 2]),
        {"w": random(0, 8, 8, 3, 3)},
        ("n", 8, "h", "w"),
        "its padding depends on the size of its input (auto_pad)",
    ),
    "dynamic": (
        [*SCALED, ("Conv", ["x", "s"], "y", {})],
        {"w": random(0, 8, 8, 3, 3)},
        IMAGE,
        "its weight is computed in the graph",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_quantized_is_listed_with_its_reason(tmp_path: Path, case: str) -> None:
    nodes, constants, x, reason = CASES[case]
    (site,) = sites_of(small_graph(tmp_path / "g.onnx", nodes, constants, x=x)).values()
    assert site.excluded is not None and reason in site.excluded
    assert site.weight is None


def test_products_in_the_body_of_an_operator_are_listed(tmp_path: Path) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["x", f"w{k}"], [f"y{k}"], name=f"inner{k}")],
            f"branch{k}",
            [],
            [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(random(k, W, W), f"w{k}")],
        )
        for k in range(2)
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"], name="outer"),
            helper.make_node("ReduceSum", ["z"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["yes"]),
            helper.make_node(
                "If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]
            ),
        ],
        "control",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, W])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(random(5, W, W), "w"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
    onnx.save(model, tmp_path / "g.onnx")
    found = sites_of(tmp_path / "g.onnx")
    assert found["outer"].excluded is None
    reasons = {s.excluded for name, s in found.items() if name != "outer"}
    assert len(found) == 3 and reasons == {"it is in the body of a node If"}


def chain_of(length: int, op: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        names = ["x", *(f"v{k}" for k in range(length - 1)), "y"]
        nodes: list[Node] = [(op, [names[k], f"w{k}"], names[k + 1], {}) for k in range(length)]
        shape = (8, 8, 1, 1) if op == "Conv" else (W, W)
        x = IMAGE if op == "Conv" else ("n", 6, W)
        return small_graph(path, nodes, {f"w{k}": random(k, *shape) for k in range(length)}, x=x)

    return make


@pytest.mark.parametrize(
    ("length", "op", "out"), [(4, "Conv", 2), (3, "Conv", 2), (2, "Conv", 0), (4, "MatMul", 0)]
)
def test_only_a_graph_of_several_convolutions_has_ends(
    tmp_path: Path, length: int, op: str, out: int
) -> None:
    found = list(sites_of(chain_of(length, op)(tmp_path / "g.onnx")).values())
    assert [s.excluded == FIRST_OR_LAST for s in found] == [
        out > 0 and k in (0, length - 1) for k in range(length)
    ]


def test_who_reads_only_a_shape_is_no_reader(tmp_path: Path) -> None:
    """Reshapes to a computed shape, as exporters write them, hide neither folds nor roles."""
    nodes: list[Node] = [
        ("LayerNormalization", ["x", "g", "b"], "n", {}),
        ("Shape", ["n"], "shape", {}),
        ("MatMul", ["n", "w"], "m", {}),
        ("Reshape", ["m", "shape"], "q", {}),
        ("Transpose", ["q"], "k", {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "k"], "s", {}),
        ("Softmax", ["s"], "p", {}),
        ("MatMul", ["p", "q"], "o", {}),
        ("Shape", ["o"], "shape2", {}),
        ("Reshape", ["o", "shape2"], "r", {}),
        ("MatMul", ["r", "v"], "a", {}),
        ("Shape", ["a"], "shape3", {}),
        ("Reshape", ["a", "shape3"], "c", {}),
        ("MatMul", ["c", "u"], "y", {}),
    ]
    held = {"g": random(0, W), "b": random(1, W)} | {k: random(2, W, W) for k in "wvu"}
    found = sites_of(small_graph(tmp_path / "g.onnx", nodes, held))
    assert [s.role for s in found.values()] == ["qkv", "bmm_qk", "bmm_pv", "proj", "linear"]
    assert found["w"].fold == ("g", "b")
