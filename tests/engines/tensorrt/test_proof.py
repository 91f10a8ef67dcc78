from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.engines.facts import EngineProof
from arvg_trt.engines.tensorrt.half_precision import HalfType, to_half_precision
from arvg_trt.engines.tensorrt.inspect import Layer
from arvg_trt.engines.tensorrt.process import compile_engine
from arvg_trt.engines.tensorrt.products import Product, Products, read_products
from arvg_trt.engines.tensorrt.proof import (
    Missing,
    Planned,
    computed_in,
    digest,
    missing_sites,
    only_converts,
    require_proof,
)
from arvg_trt.engines.tensorrt.targets import resolve_target
from arvg_trt.errors import BuildError

trt = pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")

C = 64
node = helper.make_node


def linear(name: str, source: str, weight: str) -> list[onnx.NodeProto]:
    """A product whose weight is held in 8 or 4 bits."""
    held = {"axis": 0, "block_size": 32} if weight == "int4" else {"axis": 1}
    scales = f"{name}.s"
    return [
        node("DequantizeLinear", [f"{name}.w", scales], [f"{name}.dw"], name=f"{name}.dq", **held),
        node("MatMul", [source, f"{name}.dw"], [f"{name}.y"], name=name),
    ]


def constants(name: str, weight: str) -> list[onnx.TensorProto]:
    random = np.random.default_rng(0)
    rows = C // 32 if weight == "int4" else 1
    scale = np.full((rows, C) if rows > 1 else (C,), 2e-3, np.float32)
    kind = {"int4": TensorProto.INT4, "int8": TensorProto.INT8}[weight]
    values = random.integers(-7, 8, (C, C)).astype(np.int8)
    made = helper.make_tensor(f"{name}.w", kind, (C, C), values.flatten().tolist())
    return [made, numpy_helper.from_array(scale, f"{name}.s")]


def built(
    tmp_path: Path,
    nodes: list[onnx.NodeProto],
    held: list[onnx.TensorProto],
    *targets: str,
    planned: tuple[Planned, ...],
    half: HalfType = "float16",
    inputs: tuple[str, ...] = ("x",),
    rows: int = 128,
    batch: int = 1,
) -> tuple[EngineProof, list[Missing], int]:
    """Return the proof of an engine, what is missing in it, and its size."""
    taken, given = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, rows, C]) for n in names]
        for names in (inputs, ("out",))
    )
    model = helper.make_model(
        helper.make_graph(nodes, "g", taken, given, held),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    path = tmp_path / "g.onnx"
    onnx.save(to_half_precision(model, dtype=half), path)
    group = [resolve_target(name, "tensorrt_rtx") for name in targets]
    result = compile_engine(
        path, tmp_path / "g.engine", backend="tensorrt_rtx", targets=group, profiles={}
    )
    products = read_products(path, {})
    missing = missing_sites(result.layers, planned, products, group)
    return digest(result.layers, products, planned, missing), missing, result.bytes


@pytest.mark.parametrize(("weight", "size"), [("int8", C * C), ("int4", C * C // 2)])
def test_a_weight_that_keeps_its_bits_is_proved(tmp_path: Path, weight: str, size: int) -> None:
    nodes = [*linear("a", "x", weight), node("Relu", ["a.y"], ["out"], name="relu")]
    planned = (Planned("site", "a", "MatMul", None, weight),)  # type: ignore[arg-type]
    proof, missing, whole = built(
        tmp_path, nodes, constants("a", weight), "sm86", "sm89", planned=planned
    )
    assert missing == []
    assert (proof.weight_sites_planned, proof.weight_sites_proved) == (1, 1)
    assert proof.macs == 128 * C * C
    assert proof.shares == {f"{weight.upper()} weights": 1.0}
    assert proof.constant_bytes[weight.upper()] == size
    assert sum(proof.constant_bytes.values()) < whole


def test_turing_expands_int8_weights_by_rule_and_is_not_refused(tmp_path: Path) -> None:
    nodes = [*linear("a", "x", "int8"), node("Relu", ["a.y"], ["out"], name="relu")]
    planned = (Planned("site", "a", "MatMul", None, "int8"),)
    proof, (missing,), _ = built(
        tmp_path, nodes, constants("a", "int8"), "sm75", planned=planned, batch=2
    )
    assert missing.reason == (
        "a kernel of its own expands the INT8 weight on each run "
        "(sm75 has no kernel for INT8 weights beside a batch of float inputs)"
    )
    require_proof("g", [missing])
    assert proof.shares == {"FP16": 1.0} and proof.weight_sites_proved == 0


def test_a_site_that_is_not_what_was_planned_refuses_the_engine(tmp_path: Path) -> None:
    """A scale that the graph computes: the builder makes a product of floats."""
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        node("DequantizeLinear", ["q", "s", "z"], ["dq"], name="dq"),
        *linear("blocks.0.a", "dq", "int8"),
        node("Relu", ["blocks.0.a.y"], ["r"], name="relu"),
        *linear("blocks.1.a", "r", "int8"),
        node("Identity", ["blocks.1.a.y"], ["out"], name="last"),
    ]
    held = [c for k in (0, 1) for c in constants(f"blocks.{k}.a", "int8")]
    held += [
        numpy_helper.from_array(np.array(0.03, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
    ]
    planned = tuple(
        Planned(f"blocks.{k}.a", f"blocks.{k}.a", "MatMul", "int8", "int8") for k in (0, 1)
    )
    proof, missing, _ = built(tmp_path, nodes, held, "sm86", planned=planned)
    assert [m.site for m in missing] == ["blocks.1.a"] and missing[0].rule is None
    assert proof.shares == {"INT8": 0.5, "INT8 weights": 0.5}
    with pytest.raises(BuildError) as caught:
        require_proof("step", missing)
    assert caught.value.exit_code == 6
    assert str(caught.value) == (
        "step.engine: 1 site is not what was planned: blocks.1.a: runs as Half runtime_fusion "
        "(quantize again with --exclude for them, or build with --allow-unproved)"
    )


def test_sites_that_are_unproved_for_one_reason_are_named_together() -> None:
    lost = [Missing(f"blocks.{k}.a", "is not in the engine's layer list", None) for k in range(24)]
    known = Missing("conv", "runs as Half correlation", "sm75 has no INT8 convolution kernel")
    with pytest.raises(
        BuildError, match=r"24 sites are not .*: blocks\.\{0-23\}\.a: is not in"
    ) as e:
        require_proof("step", [*lost, known])
    assert "conv" not in str(e.value).replace("step", "")


@pytest.mark.parametrize("fused", [True, False])
def test_an_attention_is_one_kernel_where_the_list_shows_it(tmp_path: Path, fused: bool) -> None:
    """With one image and one head it is none: TensorRT for RTX 1.7 fuses batches of products."""
    nodes = [
        node("Transpose", ["k"], ["kt"], name="t", perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"], name="qk"),
        node("Softmax", ["scores"], ["p"], name="softmax", axis=-1),
        *([] if fused else [node("Relu", ["p"], ["r"], name="relu")]),
        node("MatMul", ["p" if fused else "r", "v"], ["out"], name="pv"),
    ]
    # Behind a Relu the softmax is no attention's: nothing is claimed of it.
    proof, _, _ = built(tmp_path, nodes, [], "sm89", planned=(), inputs=("q", "k", "v"), batch=2)
    assert proof.attentions == int(fused)
    assert proof.split_attentions == ()
    assert proof.macs == 2 * 2 * 128 * 128 * C


def test_a_softmax_between_two_products_of_their_own_is_a_split_attention() -> None:
    products = Products((Product("qk", "MatMul", 10), Product("pv", "MatMul", 30)), ("softmax",))
    layers = [
        layer("qk_myl0_1", "gemm", ("FP8", "FP8"), ("qk",)),
        layer("__myl_MaxrSubExp_myl0_2", "kgen", ("Half",), ("softmax",)),
        layer("__myl_MoveReplConc_myl0_3", "kgen", ("FP8",), ("pv",)),
        layer("pv_myl0_4", "gemm", ("Half", "Half"), ("pv",)),
    ]
    proof = digest(layers, products, (), ())
    assert proof.split_attentions == ("softmax",)
    assert proof.shares == {"FP16": 0.75, "FP8": 0.25}
    assert (proof.kernels, proof.conversions) == (4, 1)


def layer(name: str, kind: str, inputs: tuple[str, ...], nodes: tuple[str, ...]) -> Layer:
    return Layer(name=name, type=kind, inputs=inputs, constants=(), outputs=(), onnx_nodes=nodes)


def test_a_product_that_no_layer_names_is_said_to_be_unlisted() -> None:
    assert computed_in([]) == "not in the layer list"
    assert computed_in([layer("__myl_GathFc_myl0_1", "kgen", ("Int64", "Half"), ("a",))]) == "FP16"


@pytest.mark.parametrize(
    ("name", "kind", "converts"),
    [
        ("__myl_CastMove_myl0_3", "kgen", True),
        ("__myl_CastMul_myl0_3", "kgen", False),
        ("Reformatting CopyNode for Input Tensor 0", "Reformat", True),
        ("_gemm_mha_v2_myl0_5", "kgen", False),
    ],
)
def test_kernels_that_compute_nothing_are_counted(name: str, kind: str, converts: bool) -> None:
    assert only_converts(layer(name, kind, ("Half",), ())) is converts
