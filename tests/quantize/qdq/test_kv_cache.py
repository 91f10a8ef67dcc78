"""Attentions over stored keys and values against a float64 simulation, in every kind of graph."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from arvg_trt.errors import RecipeError
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.scheme import CacheType
from arvg_trt.quantize.qdq.kv_cache import CacheScales, cached_attentions, store_caches
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.sessions.session import DeviceValue

from ..test_generator_formats import e4m3
from .test_attention import product

HEADS, NEW, PAST, CHANNELS = 2, 3, 4, 8
SITES: tuple[Site, ...] = (product("bmm_qk", "attn", "q"), product("bmm_pv", "attn_2", "p"))
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "fp8": TensorProto.FLOAT8E4M3FN,
    "int8": TensorProto.INT8,
}


def attention_graph(kind: str) -> onnx.ModelProto:
    """Return a graph of a "step", of a "first" one, which has no past, or of "all" positions."""
    info, node = helper.make_tensor_value_info, helper.make_node
    total = PAST + NEW if kind == "step" else NEW
    shape = ["n", HEADS, NEW, CHANNELS]
    inputs = [info(name, TensorProto.FLOAT, shape) for name in "qkv"]
    key, value = ("k2", "v2") if kind == "all" else ("present_key.0", "present_value.0")
    nodes = [node("Relu", [name], [f"{name}1"], name=f"{name}/Relu") for name in "kv"]
    outputs = [info("y", TensorProto.FLOAT, shape)]
    for short, new, whole in (("key", "k1", key), ("value", "v1", value)):
        if kind == "step":
            past = f"past_{short}.0"
            inputs.append(info(past, TensorProto.FLOAT, ["n", HEADS, PAST, CHANNELS]))
            nodes.append(node("Concat", [past, new], [whole], name=f"{short}/Concat", axis=2))
        else:
            nodes.append(node("Identity", [new], [whole], name=f"{short}/Identity"))
        if kind != "all":
            outputs.append(info(whole, TensorProto.FLOAT, ["n", HEADS, total, CHANNELS]))
    nodes += [
        node("Transpose", [key], ["t"], name="attn/Transpose", perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "t"], ["scores"], name="attn"),
        node("Softmax", ["scores"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", value], ["y"], name="attn_2"),
    ]
    shapes = [info(n, TensorProto.FLOAT, ["n", HEADS, total, CHANNELS]) for n in ("k2", "v2")]
    graph = helper.make_graph(nodes, "case", inputs, outputs, value_info=shapes)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def scales(kind: CacheType) -> CacheScales:
    if kind in ("float32", "float16"):
        return CacheScales()
    rng = np.random.default_rng(1)
    largest = 448 if kind == "fp8" else 127
    key = rng.uniform(0.5, 4, (HEADS, CHANNELS)) / largest
    value = np.repeat(rng.uniform(0.5, 4, (HEADS, 1)), CHANNELS, axis=1) / largest
    return CacheScales(key.astype(np.float32), value.astype(np.float32))


def coded(x: np.ndarray, scale: np.ndarray | None, kind: CacheType) -> np.ndarray:
    """Return what is stored of x [n, H, t, d], as float64."""
    if scale is None:
        return x.astype(np.float16 if kind == "float16" else np.float32).astype(np.float64)
    steps = x / scale.astype(np.float64)[None, :, None, :]
    return e4m3(steps) if kind == "fp8" else np.clip(np.rint(steps), -128, 127)


def decoded(codes: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    return codes if scale is None else codes * scale.astype(np.float64)[None, :, None, :]


def on_grid(x: np.ndarray, scale: np.ndarray | None, kind: CacheType) -> np.ndarray:
    """Return x near points of the grid, so that nothing hangs on a tie."""
    near = decoded(coded(np.abs(x), scale, kind), scale)
    return (near * (1 if scale is None else 1.0001)).astype(np.float32)


@pytest.mark.parametrize("graph", ["step", "first", "all"])
@pytest.mark.parametrize("kind", ["float32", "float16", "fp8", "int8"])
def test_attention_computes_what_float64_simulation_says(
    tmp_path: Path, kind: CacheType, graph: str
) -> None:
    rng = np.random.default_rng(0)
    model = ir.serde.deserialize_model(attention_graph(graph))
    chosen = scales(kind)
    (attention,) = cached_attentions(model.graph, SITES)
    assert (attention.name, attention.heads) == ("attn", (HEADS, CHANNELS))
    store_caches(model.graph, attention, kind, chosen)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, tmp_path / "g.onnx")
    stored = {
        v.name: v.type.tensor_type.elem_type for v in (*proto.graph.input, *proto.graph.output)
    }
    caches = {name for name in stored if name.startswith(("past_", "present_"))}
    assert len(caches) == {"step": 4, "first": 2, "all": 0}[graph]
    assert {stored[name] for name in caches} <= {TYPES[kind]}

    shape = (2, HEADS, NEW, CHANNELS)
    q = rng.normal(0, 1, shape).astype(np.float32)
    k, v = (on_grid(rng.normal(0, 1, shape), s, kind) for s in (chosen.key, chosen.value))
    v[0, 0, 0, 0] = 1e3  # clips, where there is a grid
    past = {
        name: coded(np.abs(rng.normal(0, 1, (2, HEADS, PAST, CHANNELS))), scale, kind)
        for name, scale in (("past_key.0", chosen.key), ("past_value.0", chosen.value))
    }
    codes = [coded(x.astype(np.float64), s, kind) for x, s in ((k, chosen.key), (v, chosen.value))]
    if graph == "step":
        codes = [np.concatenate(both, axis=2) for both in zip(past.values(), codes, strict=True)]
    keys, values = (decoded(c, s) for c, s in zip(codes, (chosen.key, chosen.value), strict=True))
    logits = q.astype(np.float64) @ keys.transpose(0, 1, 3, 2)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    wanted = (p / p.sum(axis=-1, keepdims=True)) @ values

    found = run(
        tmp_path / "g.onnx", {"q": q, "k": k, "v": v}, past if graph == "step" else {}, kind
    )
    np.testing.assert_allclose(found["y"], wanted, atol=3e-6 * np.abs(wanted).max())
    for name, code in zip(("present_key.0", "present_value.0"), codes, strict=True):
        if graph != "all":
            np.testing.assert_array_equal(numbers(found[name], kind), code)


def run(
    path: Path, feeds: dict[str, np.ndarray], past: dict[str, np.ndarray], kind: CacheType
) -> dict[str, np.ndarray]:
    """Run a graph on past keys and values as they are stored."""
    session = reference_session(path)
    held = {
        name: fp8_value(codes, path.parent)
        if kind == "fp8"
        else session.to_device(codes.astype(kind))
        for name, codes in past.items()
    }
    outputs = session.run_on_device({**feeds, **held})
    return {name: value.numpy() for name, value in outputs.items()}


def fp8_value(numbers: np.ndarray, folder: Path) -> DeviceValue:
    """Return numbers of E4M3 in a session's memory, where numpy has no such type."""
    shape = list(numbers.shape)
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TYPES["fp8"])],
        "cast",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TYPES["fp8"], shape)],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "cast.onnx")
    session = reference_session(folder / "cast.onnx")
    return session.run_on_device({"x": numbers.astype(np.float32)})["y"]


def numbers(array: np.ndarray, kind: CacheType) -> np.ndarray:
    if kind == "fp8":
        array = array.view(ml_dtypes.float8_e4m3fn)
    return array.astype(np.float64)


def test_an_attention_of_another_form_is_refused_by_name() -> None:
    model = ir.serde.deserialize_model(attention_graph("all"))
    turned = next(node for node in model.graph if node.op_type == "Transpose")
    turned.op_type = "Identity"
    with pytest.raises(RecipeError, match="attn is no attention over keys and values"):
        cached_attentions(model.graph, SITES)
