"""Quantized attention products against a float64 simulation, and in all graphs of a generator."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.errors import RecipeError
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from arvg_trt.quantize.plan import BROKEN, check_plan, make_plan
from arvg_trt.quantize.qdq.attention import insert_products, quantize_attention
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.runtime.sessions.open import open_session

from ...families.generators import TinyGenerator, full_logits, stepped_logits
from ...families.tiny import silent
from ..test_generator_formats import e4m3
from ..test_shared_graphs import quantize, sqnr

HEADS, TOKENS, WIDTH = 2, 7, 8


def attention_graph() -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    shapes = {"q": (TOKENS, WIDTH), "k": (WIDTH, TOKENS), "v": (TOKENS, WIDTH)}
    inputs = [info(n, TensorProto.FLOAT, ["n", HEADS, *s]) for n, s in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"], name="attn"),
        helper.make_node("Softmax", ["scores"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="attn_2"),
    ]
    outputs = [info("y", TensorProto.FLOAT, ["n", HEADS, TOKENS, WIDTH])]
    graph = helper.make_graph(nodes, "case", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def product(role: str, node: str, source: str) -> Site:
    return Site(
        name=f"attn.{role}",
        graph="full",
        role=role,
        op="MatMul",
        node=node,
        weight=None,
        bias=None,
        input=source,
        output="y",
        weight_shape=(),
        channel_axis=3,
    )


def rounded(x: np.ndarray, scale: float, grid: str) -> np.ndarray:
    if grid == "fp8":
        return e4m3(x / scale) * scale
    return np.clip(np.rint(x / scale), -128, 127) * scale


@pytest.mark.parametrize("grid", ["fp8", "uniform"])
def test_both_products_compute_what_float64_simulation_says(tmp_path: Path, grid: str) -> None:
    rng = np.random.default_rng(0)
    largest = {"fp8": 448.0, "uniform": 127.0}[grid]
    reach = {"q": 3.0, "k": 2.0, "p": 1.0, "v": 4.0}
    scale = {n: float(np.float32(v / largest)) for n, v in reach.items()}
    made = {n: ActivationFormat(bits=8, grid=grid, scale=v) for n, v in scale.items()}  # type: ignore[arg-type]
    model = ir.serde.deserialize_model(attention_graph())
    for role, node, left, right in (("bmm_qk", "attn", "q", "k"), ("bmm_pv", "attn_2", "p", "v")):
        site = product(role, node, left)
        entry = SitePlan(name=site.name, activation=made[left], other=made[right])
        insert_products(model.graph, site, entry)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "g.onnx")
    feeds = {
        name: rng.normal(0, 1, (3, HEADS, *((WIDTH, TOKENS) if name == "k" else (TOKENS, WIDTH))))
        for name in "qkv"
    }
    # On points of the grid nothing hangs on a tie; the last values clip.
    feeds = {n: rounded(x, scale[n], grid) * 1.0001 for n, x in feeds.items()}
    feeds["v"][0, 0, 0] = 9.0
    feeds = {n: x.astype(np.float32) for n, x in feeds.items()}
    q, k, v = (rounded(feeds[n].astype(np.float64), scale[n], grid) for n in "qkv")
    logits = q @ k
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    wanted = rounded(p, scale["p"], grid) @ v
    found = open_session(tmp_path / "g.onnx", optimized=False).run(feeds)["y"]
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())


def with_attention(source: TinyGenerator, folder: Path, **options):  # type: ignore[no-untyped-def]
    plan, results = quantize(source, folder, smoothing="gps", **options)
    return quantize_attention(
        CalibrationRun(folder, source.samples, source.site_map.graphs, 5, silent),
        source.site_map,
        plan,
        results,
    )


# What an operand loses at most where all that is known is its largest value: FP8 keeps 31 dB of
# any, an INT8 softmax has a step of 1/127.
LEAST = {"fp8": 29.0, "int8": 20.0}


@pytest.mark.parametrize("kind", LEAST)
@pytest.mark.parametrize("family", ["var", "rar"])
def test_every_graph_gets_the_same_scales_on_both_sides(
    generators, family: str, tmp_path: Path, kind: str
) -> None:
    source, folder = generators(family), tmp_path / "q"
    plan, results = with_attention(source, folder, attention=kind)
    products = [s for s in source.full_sites if s.role.startswith("bmm")]
    entries = {e.name: e for e in plan.sites}
    told = {r.name: r for r in results}
    assert len(products) == 4
    for site in products:
        entry = entries[site.name]
        assert entry.activation is not None and entry.other is not None
        if kind == "fp8" and site.role == "bmm_pv":
            assert entry.activation.scale == pytest.approx(1 / 448)
        assert told[site.name].activation == ("FP8" if kind == "fp8" else "INT8") + " per-tensor"
        assert told[site.name].reason == (None if kind == "fp8" else BROKEN)
        assert told[site.name].activation_sqnr_db > LEAST[kind]
    by_name = {s.name: s for s in products}
    for graph in ("full", "step"):
        made = onnx.load(folder / f"{graph}.onnx")
        held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
        makers = {n.output[0]: n for n in made.graph.node}
        nodes = {n.name: n for n in made.graph.node}
        for site in source.site_map.of_graph(graph):
            if site.name in by_name:
                entry = entries[site.name]
                for value, chosen in zip(
                    nodes[site.node].input, (entry.activation, entry.other), strict=True
                ):
                    dequantize = makers[value]
                    assert dequantize.op_type == "DequantizeLinear"
                    assert held[dequantize.input[1]] == np.float32(chosen.scale)
    full = full_logits(source, folder)
    plain = full_logits(source, source.folder)
    # A query or key that rounds the other way moves every score of its row a little.
    assert sqnr(stepped_logits(source, folder), full) > 45
    assert sqnr(full, plain) > 20


def test_float_attention_is_left_alone(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    plan, results = with_attention(tiny_var, tmp_path / "q")
    products = [e for e in plan.sites if "bmm" in e.name]
    assert products and all(e.activation is None and e.reason for e in products)
    assert all(r.activation == "float" for r in results if "bmm" in r.name)


def test_a_scale_of_the_plan_is_kept(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    sites = SiteMap(sites=tiny_var.full_sites)
    plan = make_plan(sites, QuantizeOptions(attention="fp8"))
    own = ActivationFormat(bits=8, grid="fp8", scale=0.25)
    changed = Plan(
        sites=tuple(
            msgspec.structs.replace(e, other=own) if e.name.endswith("bmm_qk") else e
            for e in plan.sites
        )
    )
    made, results = quantize(tiny_var, tmp_path / "q", changed, attention="fp8")
    final, _ = quantize_attention(
        CalibrationRun(tmp_path / "q", tiny_var.samples, tiny_var.site_map.graphs, 5, silent),
        tiny_var.site_map,
        made,
        results,
    )
    kept = [e.other for e in final.sites if e.name.endswith("bmm_qk")]
    assert kept and all(f == own for f in kept)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bmm_qk", {"other": None}, "multiplies two activations, which need one kind"),
        ("bmm_qk", {"other": ActivationFormat(bits=8)}, "need one kind of grid"),
        (
            "bmm_pv",
            {"activation": ActivationFormat(bits=8, shift=3), "other": ActivationFormat(bits=8)},
            "without shifts",
        ),
        ("bmm_pv", {"weight": WeightFormat(bits=8)}, "no weight to quantize"),
        ("ffn.fc1", {"other": ActivationFormat(bits=8)}, "is no product of two activations"),
    ],
)
def test_plan_of_products_that_cannot_be_is_refused_by_name(
    tiny_var: TinyGenerator, name: str, changes: dict, message: str
) -> None:
    sites = SiteMap(sites=tiny_var.full_sites)
    plan = make_plan(sites, QuantizeOptions(attention="fp8"))
    edited = Plan(
        sites=tuple(
            msgspec.structs.replace(e, **changes) if e.name.endswith(name) else e
            for e in plan.sites
        )
    )
    with pytest.raises(RecipeError, match=message) as caught:
        check_plan(edited, sites)
    assert "blocks.0" in str(caught.value)


def test_patterns_leave_products_out(tiny_var: TinyGenerator) -> None:
    sites = SiteMap(sites=tiny_var.full_sites)
    options = QuantizeOptions(attention="int8", exclude=("blocks.0.*bmm*",))
    entries = check_plan(make_plan(sites, options), sites)
    reasons = {n: e.reason for n, e in entries.items() if "bmm" in n}
    assert {r for n, r in reasons.items() if "blocks.0" in n} == {
        "excluded by --exclude or the recipe"
    }
    assert {r for n, r in reasons.items() if "blocks.1" in n} == {BROKEN}
