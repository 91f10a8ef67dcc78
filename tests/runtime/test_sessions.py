from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.errors import BundleError, OutOfMemory
from arvg_trt.runtime.sessions import onnxruntime as sessions
from arvg_trt.runtime.sessions.open import (
    fast_session,
    mapped_session,
    open_session,
    reference_session,
)

from ..graph.text import graph_of

SESSIONS = [reference_session, fast_session, mapped_session]


def model(*, opset: int = 21) -> onnx.ModelProto:
    """y = x * w, z = y + 1; w has a file of its own when it is saved."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "one"], ["z"])],
        "g",
        [info("x", TensorProto.FLOAT, ["n", 2])],
        [info(name, TensorProto.FLOAT, ["n", 2]) for name in "yz"],
        [
            numpy_helper.from_array(np.array([2, 3], np.float32), "w"),
            numpy_helper.from_array(np.float32(1), "one"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(made, {"key": "value"})
    return made


def save(folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    return path


@pytest.mark.parametrize("session", SESSIONS)
def test_session_runs_and_tells_its_names(tmp_path: Path, session) -> None:
    opened = session(save(tmp_path), 1)
    assert (opened.inputs, opened.outputs) == (("x",), ("y", "z"))
    assert opened.metadata["key"] == "value"
    assert opened.device == "CPUExecutionProvider"
    found = opened.run({"x": np.ones((3, 2), np.float32)})
    assert found["y"].tolist() == [[2, 3]] * 3 and found["z"].tolist() == [[3, 4]] * 3
    assert list(opened.run({"x": np.ones((1, 2), np.float32)}, ["z"])) == ["z"]


def test_changed_copy_reads_the_weights_beside_the_original(tmp_path: Path) -> None:
    path = save(tmp_path)
    changed = onnx.load(path, load_external_data=False)
    del changed.graph.output[0]
    lean = open_session(path, optimized=True, lean=True, graph=changed.SerializeToString())
    assert lean.outputs == ("z",)
    assert lean.run({"x": np.ones((1, 2), np.float32)})["z"].tolist() == [[3, 4]]


@pytest.mark.parametrize("session", SESSIONS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"this is no graph"),
        lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        lambda p: p.unlink(),
        lambda p: p.with_name("m.onnx.data").unlink(),
        lambda p: p.with_name("m.onnx.data").write_bytes(b"x"),
        lambda p: onnx.save(model(opset=99), p),
    ],
    ids=["empty", "text", "truncated", "absent", "no weights", "cut weights", "opset 99"],
)
def test_damaged_graph_is_an_error_that_names_the_file(tmp_path: Path, session, damage) -> None:
    path = save(tmp_path)
    damage(path)
    with pytest.raises(BundleError, match="cannot load the graph") as caught:
        session(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "feeds",
    [
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 2))},
        {"x": np.ones(2, np.float32)},
    ],
    ids=["shape", "type", "rank"],
)
def test_feed_that_does_not_fit_is_refused_with_its_shape(
    tmp_path: Path, feeds: dict[str, np.ndarray]
) -> None:
    session = reference_session(save(tmp_path))
    with pytest.raises(BundleError, match="ONNX Runtime refused") as caught:
        session.run(feeds)
    for name, value in feeds.items():
        assert f"{name} {list(value.shape)}: the graph takes x [n, 2] float32" in caught.value.what
    assert caught.value.where == str(session.path)


def test_an_image_of_another_size_names_the_option(tmp_path: Path) -> None:
    text = "g (float[1, 3, 96, 96] pixels) => (float[1, 3, 96, 96] y) { y = Relu(pixels) }"
    path = tmp_path / "g.onnx"
    ir.save(graph_of(text), path)
    with pytest.raises(BundleError, match=r"the graph takes pixels \[1, 3, 96, 96\]") as caught:
        reference_session(path).run({"pixels": np.zeros((1, 3, 256, 256), np.float32)})
    assert "--size 96" in str(caught.value.do)


def test_an_index_beyond_its_table_is_about_values_not_shapes(tmp_path: Path) -> None:
    text = "g (int64[n] ids) => (float[n, 2] y) { y = Gather(table, ids) }"
    path = tmp_path / "g.onnx"
    ir.save(graph_of(text, table=np.ones((3, 2), np.float32)), path)
    with pytest.raises(BundleError, match="out of data bounds") as caught:
        reference_session(path).run({"ids": np.array([1, 5])})
    assert "check the values" in str(caught.value.do)


def test_reference_session_keeps_every_node_as_written(tmp_path: Path) -> None:
    """A cancelling pair of nodes changes the value only where it is executed."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
    ]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(nodes, "g", [info("x", kind, [1])], [info("y", kind, [1])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, tmp_path / "c.onnx")
    found = reference_session(tmp_path / "c.onnx").run({"x": np.array([0.1], np.float32)})["y"]
    assert found[0] == np.float32(np.float16(0.1)) != np.float32(0.1)


@pytest.mark.parametrize("session", SESSIONS)
def test_run_on_device_keeps_values_for_the_next_run(tmp_path: Path, session) -> None:
    opened = session(save(tmp_path), 1)
    assert opened.memory == "cpu"
    x = np.array([[1, 2], [3, 4]], np.float32)
    once = opened.run_on_device({"x": x})
    assert list(once["z"].shape()) == [2, 2]
    twice = opened.run_on_device({"x": once["z"]})
    wanted = opened.run({"x": opened.run({"x": x})["z"]})
    for name in "yz":
        assert np.array_equal(twice[name].numpy(), wanted[name])
    assert np.array_equal(opened.run_on_device({"x": opened.to_device(x)})["y"].numpy(), x * [2, 3])
    assert np.array_equal(opened.run_on_device({"x": x.T})["y"].numpy(), x.T * [2, 3])


@pytest.mark.parametrize(
    "feeds",
    [{"x": np.ones((1, 3), np.float32)}, {"x": np.ones((1, 2))}, {"q": np.ones(1)}, {}],
    ids=["shape", "type", "name", "none"],
)
def test_bound_feed_that_does_not_fit_is_refused(
    tmp_path: Path, feeds: dict[str, np.ndarray]
) -> None:
    session = reference_session(save(tmp_path))
    with pytest.raises(BundleError, match="ONNX Runtime refused") as caught:
        session.run_on_device(feeds)
    for name, value in feeds.items():
        assert f"{name} {list(value.shape)}" in caught.value.what


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("lean", [False, True])
def test_memory_that_the_machine_lacks_is_named(tmp_path: Path, lean: bool, bound: bool) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Expand", ["x", "shape"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, [1])],
        [info("y", TensorProto.FLOAT, [None])],
        [numpy_helper.from_array(np.array([2**50]), "shape")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(made, tmp_path / "huge.onnx")
    # Without optimization: folding constants would already need the memory.
    session = open_session(tmp_path / "huge.onnx", optimized=False, lean=lean)
    run = session.run_on_device if bound else session.run
    with pytest.raises(OutOfMemory, match=r"huge\.onnx: out of memory in ONNX Runtime"):
        run({"x": np.ones(1, np.float32)})


def kept_operators(path: Path, monkeypatch: pytest.MonkeyPatch, *, fused: bool) -> set[str]:
    """Return the operators of the graph as ONNX Runtime has optimized it."""
    target, opened = path.with_name("optimized.onnx"), sessions.create_session

    def writing(graph, options, disabled, providers):  # type: ignore[no-untyped-def]
        options.optimized_model_filepath = str(target)
        return opened(graph, options, disabled, providers)

    monkeypatch.setattr(sessions, "create_session", writing)
    open_session(path, optimized=True, fused=fused)
    return {node.op_type for node in onnx.load(target).graph.node}


def test_products_of_quantized_tensors_stay_float_where_sessions_do_not_fuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {
        "w": np.ones((8, 8), np.int8),
        "step": np.float32(0.1),
        "zero": np.int8(0),
    }
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["a"]),
        helper.make_node("DequantizeLinear", ["w", "step", "zero"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["n", 8])],
        [info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "g.onnx")
    assert "MatMul" in kept_operators(tmp_path / "g.onnx", monkeypatch, fused=False)
    assert "MatMul" not in kept_operators(tmp_path / "g.onnx", monkeypatch, fused=True)


def test_a_sum_of_values_with_a_scale_a_channel_is_not_fused_into_one_with_scalars() -> None:
    """ONNX Runtime makes QLinearAdd of it, and then refuses the graph that it made."""
    constants = {
        "s1": np.array([0.1, 0.2], np.float32),
        "s2": np.array([0.3, 0.05], np.float32),
        "zeros": np.array([128, 120], np.uint8),
        "scale": np.array(0.25, np.float32),
        "zero": np.array(128, np.uint8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "s1", "zeros"], ["x"], axis=1),
        helper.make_node("DequantizeLinear", ["b", "s2", "zeros"], ["y"], axis=1),
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("QuantizeLinear", ["sum", "scale", "zero"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info(n, TensorProto.UINT8, ["n", 2, "w"]) for n in "ab"],
        [helper.make_tensor_value_info("out", TensorProto.UINT8, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = open_session(Path("sum.onnx"), optimized=True, graph=model.SerializeToString())
    a, b = np.random.default_rng(0).integers(0, 256, (2, 1, 2, 5), np.uint8)
    wide = [
        (v.astype(np.float64) - constants["zeros"][:, None]) * constants[s][:, None]
        for v, s in ((a, "s1"), (b, "s2"))
    ]
    expected = np.clip(np.rint((wide[0] + wide[1]) / 0.25) + 128, 0, 255)
    found = session.run({"a": a, "b": b})["out"]
    assert np.abs(found.astype(int) - expected).max() <= 1  # float32 sums may round a tie


def integer_convolution(path: Path) -> None:
    """A 1x1 QLinearConv with an output step a channel, then a pool between a DQ and a Q."""
    constants = {
        "one": np.array(1, np.float32),
        "middle": np.array(128, np.uint8),
        "w": np.array([[[[3]], [[-2]]], [[[1]], [[5]]]], np.int8),
        "w_scale": np.array([0.02, 0.03], np.float32),
        "w_zero": np.zeros(2, np.int8),
        "steps": np.array([0.1, 0.7], np.float32),
        "zeros": np.array([128, 120], np.uint8),
        "scale": np.array(0.25, np.float32),
    }
    taken = ["x", "one", "middle", "w", "w_scale", "w_zero", "one", "middle"]
    nodes = [
        helper.make_node("QLinearConv", taken, ["q"]),
        helper.make_node("DequantizeLinear", ["q", "steps", "zeros"], ["f"], axis=1),
        helper.make_node("GlobalAveragePool", ["f"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "scale", "middle"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 2, "h", "w"])],
        [helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in ("q", "y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )


@pytest.mark.parametrize("session", [fast_session, mapped_session])
def test_what_follows_an_integer_convolution_is_not_fused(session, tmp_path: Path) -> None:
    """ONNX Runtime makes QLinearGlobalAveragePool of it, which fails as it runs."""
    integer_convolution(tmp_path / "pool.onnx")
    x = np.random.default_rng(1).integers(0, 256, (1, 2, 4, 4), np.uint8)
    found = session(tmp_path / "pool.onnx").run({"x": x})
    wide = found["q"].astype(np.float64) - np.array([128, 120])[:, None, None]
    wide *= np.array([0.1, 0.7])[:, None, None]
    expected = np.clip(np.rint(wide.mean(axis=(2, 3), keepdims=True) / 0.25) + 128, 0, 255)
    assert np.abs(found["y"].astype(int) - expected).max() <= 1


CHANNELS = 64  # every pair of their products leaves the range of int16
EXTREMES = np.array([127, -128], np.int8)


def largest_products(path: Path, convolution: bool) -> None:
    """A product of uint8 by int8 weights that are all 127 for output 0 and all -128 for output 1.

    The convolution's output has steps of 255 * CHANNELS around 128; that of the matrix product is
    the sum itself.
    """
    zeros = {"x_zero": np.array(0, np.uint8), "w_zero": np.array(0, np.int8)}
    if convolution:
        step = np.array(255 * CHANNELS, np.float32)
        weight = np.broadcast_to(EXTREMES[:, None, None, None], (2, CHANNELS, 1, 1))
        held = {**zeros, "one": np.array(1, np.float32), "step": step, "middle": np.uint8(128)}
        taken = ["x", "one", "x_zero", "w", "one", "w_zero", "step", "middle"]
        node = helper.make_node("QLinearConv", taken, ["y"])
        kind, shape = TensorProto.UINT8, ["n", CHANNELS, "h", "w"]
    else:
        weight, held = np.broadcast_to(EXTREMES, (CHANNELS, 2)), zeros
        node = helper.make_node("MatMulInteger", ["x", "w", "x_zero", "w_zero"], ["y"])
        kind, shape = TensorProto.INT32, ["n", CHANNELS]
    graph = helper.make_graph(
        [node],
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in {**held, "w": weight.copy()}.items()
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )


@pytest.mark.parametrize("session", [fast_session, mapped_session])
@pytest.mark.parametrize("convolution", [False, True], ids=["matmul", "convolution"])
def test_the_largest_integer_products_do_not_saturate(
    session, convolution: bool, tmp_path: Path
) -> None:
    """AVX2 without VNNI adds pairs of products in int16, where 255 * 127 * 2 ends at 32767."""
    largest_products(tmp_path / "g.onnx", convolution)
    side = (3, 3) if convolution else ()
    x = np.full((2, CHANNELS, *side), 255, np.uint8)
    found = session(tmp_path / "g.onnx", 1).run({"x": x})["y"]
    if convolution:
        expected = (128 + EXTREMES.astype(np.int64)).reshape(2, 1, 1)
    else:
        expected = 255 * CHANNELS * EXTREMES.astype(np.int64)
    assert np.array_equal(found, np.broadcast_to(expected, found.shape))
