"""A user's own file in canonical form: names, opset, linears, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from arvg_trt.errors import ExportError
from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.custom.canonical import OPSET, read_custom_graph
from arvg_trt.families.custom.parity import TOLERANCE, check_custom_graph, relative
from arvg_trt.runtime.sessions.open import reference_session

from .models import WIDTH, Node, random, small_graph

W = WIDTH


def linear(weight: str = "w", x: str = "x", y: str = "y") -> Node:
    return ("MatMul", [x, weight], y, {})


def write(model: ir.Model, folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    with WeightFile(folder) as weights:
        weights.save(model, name, {})
    return folder / f"{name}.onnx"


def products(model: ir.Model) -> list[str]:
    return [str(n.name) for n in model.graph if n.op_type in ("MatMul", "Gemm", "Conv")]


@pytest.mark.parametrize("model", ["transformer", "handmade", "autoencoder"])
def test_canonical_graph_computes_what_the_file_does(
    custom_files: dict[str, tuple[Path, ...]], tmp_path: Path, model: str
) -> None:
    for path in custom_files[model]:
        read = read_custom_graph(path)
        written = write(read, tmp_path / path.stem, path.stem)
        parity = check_custom_graph(path, written, read)
        assert max(parity.max_difference.values()) <= 1e-5
        loaded = onnx.load(written)
        onnx.checker.check_model(loaded)
        assert {o.domain: o.version for o in loaded.opset_import}[""] == OPSET
        assert not any(node.op_type == "Gemm" for node in loaded.graph.node)
        names = [node.name for node in loaded.graph.node]
        assert all(names) and len(set(names)) == len(names)
        assert not any("/" in name for name in products(read))


def test_a_product_is_named_after_its_weight_else_its_module_else_its_node(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "g.onnx",
        [
            linear("blocks.0.fc.weight", "x", "a"),
            linear("val_7", "a", "b"),
            linear("onnx::MatMul_9", "b", "c"),
            linear("w out", "c", "d"),
            linear("val_8", "d", "y"),
        ],
        {
            name: random(k, W, W)
            for k, name in enumerate(
                ("blocks.0.fc.weight", "val_7", "onnx::MatMul_9", "w out", "val_8")
            )
        },
        names={"a": "node_1", "b": "node_2", "c": "/blocks.2/attn/MatMul"},
    )
    proto = onnx.load(path)
    scopes = proto.graph.node[1].metadata_props.add()
    scopes.key = "pkg.torch.onnx.name_scopes"
    scopes.value = "['', 'blocks.1', 'blocks.1.fc', 'linear_3']"
    onnx.save(proto, path)
    found = products(read_custom_graph(path))
    assert found[:4] == ["blocks.0.fc", "blocks.1.fc", "blocks.2.attn", "w_out"]
    assert found[4] and found[4] not in found[:4]


def test_a_taken_name_gets_the_files_stem(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "second.onnx", [linear("fc.weight")], {"fc.weight": random(0, W, W)}
    )
    assert products(read_custom_graph(path, taken=["fc"])) == ["second.fc"]


def test_a_site_leaves_the_names_of_other_constants_free(tmp_path: Path) -> None:
    """`fc.weight` belongs to a Mul here, and `fc.bias` to an Add elsewhere."""
    path = small_graph(
        tmp_path / "g.onnx",
        [
            ("Mul", ["x", "fc.weight"], "a", {}),
            linear("w", "a", "b"),
            ("Relu", ["b"], "c", {}),
            ("Add", ["c", "fc.bias"], "y", {}),
        ],
        {"fc.weight": random(0, W), "fc.bias": random(1, W), "w": random(2, W, W)},
        names={"b": "fc"},
    )
    model = read_custom_graph(path)
    assert products(model) == ["fc_2"]
    check_custom_graph(path, write(model, tmp_path / "out", "g"), model)


def test_tied_weights_belong_to_each_site_and_are_stored_once(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "g.onnx",
        [
            linear("tied.weight", "x", "a"),
            ("Relu", ["a"], "b", {}),
            linear("tied.weight", "b", "y"),
        ],
        {"tied.weight": random(0, W, W)},
    )
    model = read_custom_graph(path)
    assert products(model) == ["tied", "tied_2"]
    assert {"tied.weight", "tied_2.weight"} <= set(model.graph.initializers)
    write(model, tmp_path / "out", "g")
    assert (tmp_path / "out/model.onnx.data").stat().st_size == W * W * 4


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [None, "b", "row", "scalar"])
def test_gemm_becomes_matmul_and_add(tmp_path: Path, transposed: bool, bias: str | None) -> None:
    constants: dict[str, Any] = {
        "w": random(0, 10, W) if transposed else random(0, W, 10),
        "b": random(1, 10),
        "row": random(1, 1, 10),
        "scalar": np.float32(0.5),
    }
    used = {k: v for k, v in constants.items() if k in ("w", bias)}
    inputs = ["x", "w", *([bias] if bias else [])]
    path = small_graph(
        tmp_path / "g.onnx",
        [("Gemm", inputs, "y", {"transB": int(transposed)})],
        used,
        x=("n", W),
        names={"y": "fc"},
    )
    model = read_custom_graph(path)
    wanted = ["MatMul", "Add"] if bias else ["MatMul"]
    assert [n.op_type for n in model.graph] == wanted
    x = random(3, 5, W)
    weight = used["w"].T if transposed else used["w"]
    exact = x.astype(np.float64) @ weight.astype(np.float64) + used.get(str(bias), 0.0)
    found = reference_session(write(model, tmp_path / "out", "g")).run({"x": x})["y"]
    assert relative(found, exact) < 1e-6


def test_constants_of_nodes_and_behind_identities_and_transposes_count_as_weights(
    tmp_path: Path,
) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [W, W], random(0, W, W).ravel())
    path = small_graph(
        tmp_path / "g.onnx",
        [
            ("Constant", [], "w1", {"value": tensor}),
            linear("w1", "x", "a"),
            ("Identity", ["shared"], "w2", {}),
            linear("w2", "a", "b"),
            ("Transpose", ["shared"], "w3", {"perm": [1, 0]}),
            linear("w3", "b", "y"),
        ],
        {"shared": random(1, W, W)},
    )
    model = read_custom_graph(path)
    assert [n.op_type for n in model.graph] == ["MatMul"] * 3
    assert all(n.inputs[1].const_value is not None for n in model.graph)
    check_custom_graph(path, write(model, tmp_path / "out", "g"), model)


def test_ranks_are_known_behind_a_group_norm_with_a_dynamic_batch(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "g.onnx",
        [
            ("GroupNormalization", ["x", "s", "b"], "a", {"num_groups": 2, "epsilon": 1e-5}),
            ("Reshape", ["a", "flat"], "c", {}),
            linear("w", "c", "y"),
        ],
        {
            "s": random(0, 8),
            "b": random(1, 8),
            "w": random(2, W, W),
            "flat": np.array([-1, 8 * 4, W]),
        },
        x=("n", 8, 4, W),
    )
    model = read_custom_graph(path)
    product = next(n for n in model.graph if n.op_type == "MatMul")
    assert product.inputs[0] is not None and len(product.inputs[0].shape or ()) == 3


def test_an_opset_that_cannot_be_converted_says_so(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "old.onnx",
        [("RNN", ["x", "w", "r"], "y", {"hidden_size": 4})],
        {"w": random(0, 1, 4, W), "r": random(1, 1, 4, 4)},
        opset=6,
    )
    with pytest.raises(ExportError, match="opset 6 cannot be converted to 21") as caught:
        read_custom_graph(path)
    assert caught.value.where == str(path) and caught.value.do == "export the model at opset 21"


def test_a_graph_that_onnxruntime_cannot_load_is_the_users_to_check(tmp_path: Path) -> None:
    path = small_graph(
        tmp_path / "g.onnx",
        [("Relu", ["x"], "a", {}), linear("w", "a")],
        {"w": random(0, W + 1, W)},
    )
    model = ir.load(path)
    with pytest.raises(ExportError) as caught:
        check_custom_graph(path, path, model)
    assert caught.value.where == str(path)


def test_a_difference_above_the_tolerance_fails_the_export(tmp_path: Path) -> None:
    good = small_graph(tmp_path / "g.onnx", [linear()], {"w": random(0, W, W)})
    moved = random(0, W, W)
    moved[3, 4] += 0.01
    bad = small_graph(tmp_path / "bad.onnx", [linear()], {"w": moved})
    with pytest.raises(ExportError, match=f"output y differs .*allowed {TOLERANCE:.0e}"):
        check_custom_graph(good, bad, ir.load(good))


def test_dimensions_that_no_tried_size_fits_are_refused(tmp_path: Path) -> None:
    def over_tokens(name: str, tokens: int) -> Path:
        nodes: list[Node] = [("Transpose", ["x"], "t", {"perm": [0, 2, 1]}), linear("w", "t")]
        weight = random(0, tokens, 4)
        return small_graph(tmp_path / name, nodes, {"w": weight}, x=("n", "t", W))

    odd, even = over_tokens("odd.onnx", 11), over_tokens("even.onnx", 16)
    with pytest.raises(ExportError, match="none of the sizes tried") as caught:
        check_custom_graph(odd, odd, ir.load(odd))
    assert caught.value.do == "give its inputs fixed dimensions that it works with"
    assert check_custom_graph(even, even, ir.load(even)).inputs == {"x": (2, 16, W)}
