"""Sessions of OpenVINO: what they return, what they refuse, and that no run changes an earlier."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from arvg_trt.errors import BundleError
from arvg_trt.runtime.sessions.open import openvino_session, reference_session

from ..minis.minis import Mini
from .test_sessions import save

pytest.importorskip("openvino")

ONES = np.ones((3, 2), np.float32)


def test_session_runs_and_tells_its_names(tmp_path: Path) -> None:
    opened = openvino_session(save(tmp_path), 1)
    assert (opened.inputs, opened.outputs) == (("x",), ("y", "z"))
    assert opened.metadata["key"] == "value"
    assert (opened.device, opened.memory, opened.fallback) == ("OpenVINO", "cpu", None)
    assert opened.shapes["x"] == [None, 2] and opened.types["z"] == "float32"
    found = opened.run({"x": ONES})
    assert found["y"].tolist() == [[2, 3]] * 3 and found["z"].tolist() == [[3, 4]] * 3
    assert list(opened.run({"x": ONES[:1]}, ["z"])) == ["z"]


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "no feeds: the inputs are x"),
        ({"x": ONES, "w": ONES}, "the inputs are x"),
        ({"x": ONES.astype(np.float64)}, r"x \[3, 2\]: the graph takes x \[\?, 2\] float32"),
        ({"x": np.ones((3, 5), np.float32)}, r"x \[3, 5\]: the graph takes x \[\?, 2\] float32"),
        ({"x": np.ones(2, np.float32)}, r"x \[2\]: the graph takes x \[\?, 2\] float32"),
    ],
)
def test_feeds_that_the_graph_does_not_take_are_refused(tmp_path: Path, feeds, words: str) -> None:
    opened = openvino_session(save(tmp_path), 1)
    with pytest.raises(BundleError, match=words):
        opened.run(feeds)
    # The next run is not the worse for it.
    assert opened.run({"x": ONES})["y"].tolist() == [[2, 3]] * 3


def test_output_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no output nothing"):
        openvino_session(save(tmp_path), 1).run({"x": ONES}, ["nothing"])


@pytest.mark.parametrize("data", [b"", b"noise", None])
def test_file_that_is_no_graph_is_refused_with_its_name(tmp_path: Path, data) -> None:
    path = tmp_path / "m.onnx"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BundleError, match=r"m\.onnx.*OpenVINO cannot load the graph"):
        openvino_session(path, 1)


def test_arrays_of_any_memory_order_are_read_as_they_are(tmp_path: Path) -> None:
    """OpenVINO does not keep the copy in C order that it is given: it must outlive the run."""
    info = helper.make_tensor_value_info
    names = [f"x{k}" for k in range(8)]
    graph = helper.make_graph(
        [helper.make_node("Sum", names, ["y"])],
        "sum",
        [info(name, TensorProto.FLOAT, ["n", "m"]) for name in names],
        [info("y", TensorProto.FLOAT, ["n", "m"])],
    )
    path = tmp_path / "sum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    opened = openvino_session(path, 1)
    rng = np.random.default_rng(0)
    for _ in range(5):
        wide = {name: rng.random((64, 300), np.float32) for name in names}
        feeds = {name: value.T for name, value in wide.items()}
        wanted = sum(value.astype(np.float64) for value in feeds.values())
        assert np.allclose(opened.run(feeds)["y"], wanted, rtol=1e-5)
        sliced = {name: value[:, 3:30] for name, value in wide.items()}
        found = opened.run_on_device(sliced)["y"].numpy()
        assert np.allclose(found, sum(v.astype(np.float64) for v in sliced.values()), rtol=1e-5)


def test_what_a_run_returned_is_not_changed_by_later_runs(tmp_path: Path) -> None:
    opened = openvino_session(save(tmp_path), 1)
    values = [opened.run_on_device({"x": ONES * k}) for k in range(5)]
    arrays = [each["y"].numpy() for each in values]
    del values  # the arrays alone keep their memory
    for _ in range(5):
        opened.run({"x": ONES * 100})
    for k, array in enumerate(arrays):
        assert array.tolist() == [[2 * k, 3 * k]] * 3


def test_requests_that_nobody_reads_any_more_run_again(tmp_path: Path) -> None:
    from arvg_trt.runtime.sessions.openvino import OpenVinoSession

    opened = OpenVinoSession(save(tmp_path), 1)
    value = opened.to_device(ONES)
    for _ in range(20):  # each run is fed what the last one made
        value = opened.run_on_device({"x": value})["y"]
    assert value.numpy()[0].tolist() == [2.0**20, float(np.float32(3.0**20))]
    assert len(opened._idle) == 1  # beside the one whose output `value` is


def test_values_are_not_copied(tmp_path: Path) -> None:
    opened = openvino_session(save(tmp_path), 1)
    array = ONES.copy()
    value = opened.to_device(array)
    assert value.numpy() is array or np.shares_memory(value.numpy(), array)
    made = opened.run_on_device({"x": value})["y"]
    assert np.shares_memory(made.numpy(), made.numpy())


def test_empty_values_go_in_and_come_out(tmp_path: Path) -> None:
    opened = openvino_session(save(tmp_path), 1)
    empty = opened.to_device(np.zeros((0, 2), np.float32))
    made = opened.run_on_device({"x": empty})["y"]
    assert tuple(made.shape()) == made.numpy().shape == (0, 2)


STEPS = ((1, 0), (16, 1), (1, 17), (3, 0), (20, 30))


def test_steps_of_changing_lengths_equal_the_reference(mini_of: Callable[[str], Mini]) -> None:
    """OpenVINO's fused kernels of attention are 70 % off in the second step."""
    path = mini_of("var").workspace / "export" / "step.onnx"
    opened, reference = openvino_session(path, 0), reference_session(path)
    draw = np.random.default_rng(0)
    for tokens, past in STEPS:
        sizes = {
            "x": (2, tokens, 128),
            "modulation": (2, 6, 6, 128),
            "head_modulation": (2, 2, 128),
        }
        sizes |= {name: (2, 4, past, 32) for name in opened.inputs if name.startswith("past")}
        feeds = {
            name: draw.standard_normal(size).astype(np.float32) for name, size in sizes.items()
        }
        feeds["position_ids"] = np.arange(past, past + tokens)
        found, wanted = opened.run(feeds), reference.run(feeds)
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5 * np.abs(value).max(), rtol=0)


def test_openvino_is_not_imported_unless_asked_for(tmp_path: Path) -> None:
    save(tmp_path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from arvg_trt.runtime.sessions.open import fast_session\n"
        "from arvg_trt.runtime.folders import placement_of\n"
        "import arvg_trt.engines.cpu\n"
        f"fast_session(Path({str(tmp_path / 'm.onnx')!r}))\n"
        f"placement_of(Path({str(tmp_path)!r}))\n"
        "assert 'openvino' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def odd_graph() -> onnx.ModelProto:
    """A graph whose second node is of an operator that nobody has."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Strange", ["a"], ["y"], name="odd.one", domain="com.acme"),
    ]
    ends = [info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("com.acme", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=10)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("channels", [True, False])
def test_a_graph_in_floats_rounds_each_channel_by_its_own_scale(
    tmp_path: Path, kind: type[np.int8] | type[np.uint8], channels: bool
) -> None:
    """OpenVINO's own FakeQuantize would round all channels by the scale of the first."""
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(0, 0.5, (1, 6, 1, 1) if channels else ())).astype(np.float32)
    zero = kind(-9 if kind is np.int8 else 120)
    constants = {"s": scales, "shift": np.float32(0.7), "step": np.float32(0.04), "zero": zero}
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "s"], ["scaled"]),
            helper.make_node("Sub", ["scaled", "shift"], ["moved"]),
            helper.make_node("QuantizeLinear", ["moved", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
        ],
        "rounding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6, 5, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    path = tmp_path / "rounding.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    x = rng.normal(0, 3, (2, 6, 5, 4)).astype(np.float32)
    from arvg_trt.runtime.sessions.openvino import OpenVinoSession

    found = OpenVinoSession(path, 1, in_float=True).run({"x": x})["y"]
    ends = np.iinfo(kind)
    q = np.clip(
        np.rint((x * scales - np.float32(0.7)) / np.float32(0.04)) + zero, ends.min, ends.max
    )
    np.testing.assert_allclose(found, (q - zero) * np.float32(0.04), atol=1e-5)


def test_a_convolution_behind_a_concat_keeps_its_shift_in_integers(tmp_path: Path) -> None:
    """OpenVINO moves the rounding in front of the Concat: 128 channels each lose their shift."""
    from arvg_trt.runtime.sessions.openvino import OpenVinoSession

    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (32, 384, 1, 1)).astype(np.int8)
    wide = (0.003 * weight.astype(np.float32)).sum(axis=(1, 2, 3))
    constants = {
        "shift": np.float32(4.16),
        "step": np.float32(0.0347),
        "zero": np.int8(0),
        "w_q": weight,
        "w_step": np.full(32, 0.003, np.float32),
        "w_zero": np.zeros(32, np.int8),
        "bias": (np.float32(4.16) * wide).astype(np.float32),
    }
    names = ["a", "b", "c"]
    node = helper.make_node
    graph = helper.make_graph(
        [
            node("Concat", names, ["joined"], axis=1),
            node("Sub", ["joined", "shift"], ["moved"]),
            node("QuantizeLinear", ["moved", "step", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "step", "zero"], ["x"]),
            node("DequantizeLinear", ["w_q", "w_step", "w_zero"], ["w"], axis=0),
            node("Conv", ["x", "w", "bias"], ["y"], name="conv"),
        ],
        "joined",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 128, 10, 10]) for n in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
    )
    path = tmp_path / "joined.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    drawn = {name: rng.standard_exponential((1, 128, 10, 10)) for name in names}
    feeds = {name: (0.3 * x - 0.28).astype(np.float32) for name, x in drawn.items()}
    opened = OpenVinoSession(path, 1)
    found, wanted = opened.run(feeds)["y"], reference_session(path).run(feeds)["y"]
    noise = np.square(found - wanted).sum() / np.square(wanted).sum()
    assert noise < 1e-6
