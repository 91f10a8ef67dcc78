"""Arrays that must not be calibrated on, and models with dead parts, which must."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.runtime.sessions.open import reference_session

from ..command_line import arvg, assert_refused, digests


def dead_model(path: Path) -> Path:
    """Four convolutions: channel 0 of the first is dead, and so is all that the second gives."""
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(0, 0.3, shape).astype(np.float32)
        for shape in ((8, 3, 3, 3), (8, 8, 1, 1), (8, 8, 1, 1), (4, 8, 1, 1))
    ]
    weights[0][0] = 0
    weights[1][:] = 0
    nodes, value = [], "image"
    for k, made in enumerate(("a", "b", "c", "out")):
        pads = [1, 1, 1, 1] if k == 0 else [0, 0, 0, 0]
        nodes.append(helper.make_node("Conv", [value, f"w{k}"], [made], f"conv{k}", pads=pads))
        value = made
    graph = helper.make_graph(
        nodes,
        "dead",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4, 12, 12])],
        [numpy_helper.from_array(w, f"w{k}") for k, w in enumerate(weights)],
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dead")
    outcome = arvg("export", "onnx", root / "ws", "--graph", dead_model(root / "dead.onnx"))
    assert outcome.code == 0, outcome
    return root / "ws"


def images(low: float = -1, high: float = 1, count: int = 4) -> np.ndarray:
    values = np.random.default_rng(1).uniform(low, high, (count, 3, 12, 12))
    return values.astype(np.float32)


def saved(folder: Path, values: np.ndarray) -> Path:
    np.savez(folder / "feeds.npz", image=values)
    return folder / "feeds.npz"


def spoiled(sample: int | slice, value: float) -> np.ndarray:
    found = images()
    found[sample] = value
    return found


def one_bad(value: float) -> np.ndarray:
    found = images()
    found[2, 1, 3, 3] = value
    return found


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (images(0, 255), ("image has values from 0", "in sample 0", "--value-range 0 255")),
        (spoiled(2, 0.25), ("sample 2", "constant image", "0.25")),
        (spoiled(slice(None), 0), ("sample 0", "constant image")),
        (one_bad(np.nan), ("NaN or infinity in sample 2",)),
        (one_bad(np.inf), ("NaN or infinity in sample 2",)),
        (spoiled(slice(None), np.nan), ("NaN or infinity in sample 0",)),
        (images(count=3), ("holds 3 samples, 4 were asked for",)),
        (images(count=0), ("holds no sample",)),
    ],
    ids=[
        *("bytes", "constant", "all constant", "one NaN", "one infinity", "all NaN"),
        *("too few", "none"),
    ],
)
def test_arrays_of_no_picture_are_refused_by_file_and_sample(
    values: np.ndarray, words: tuple[str, ...], workspace: Path, tmp_path: Path
) -> None:
    before = digests(workspace)
    feeds = saved(tmp_path, values)
    outcome = arvg("calibrate", workspace, "--feeds", feeds, "--samples", 4)
    assert_refused(outcome, 5, "feeds.npz", *words)
    assert digests(workspace) == before


def test_range_that_the_model_takes_can_be_given(workspace: Path, tmp_path: Path) -> None:
    options = ("--feeds", saved(tmp_path, images(0, 255)), "--samples", 4)
    assert arvg("calibrate", workspace, *options, "--value-range", 0, 255).code == 0
    outcome = arvg("calibrate", workspace, *options, "--value-range", 0, 100)
    assert_refused(outcome, 5, "outside [0, 100]")
    outcome = arvg("calibrate", workspace, *options, "--value-range", 3, 1)
    assert_refused(outcome, 3, "value_range")


def test_standardized_pictures_are_pictures(workspace: Path, tmp_path: Path) -> None:
    feeds = saved(tmp_path, images(-2.2, 2.7))
    assert arvg("calibrate", workspace, "--feeds", feeds, "--samples", 4).code == 0


def test_dead_channels_and_zero_tensors_get_scales_above_zero(
    workspace: Path, tmp_path: Path
) -> None:
    held = images()
    held[:, 1] = 0  # a dead input channel, too
    feeds = saved(tmp_path, held)
    assert arvg("calibrate", workspace, "--feeds", feeds, "--samples", 4).code == 0
    assert arvg("quantize", workspace, "--name", "dead").code == 0
    plan = json.loads((workspace / "quantize" / "dead" / "plan.json").read_text())
    # The first and the last convolution stay in high precision.
    scales = [site["activation"]["scale"] for site in plan["sites"] if site["activation"]]
    assert len(scales) == 2 and all(np.isfinite(scale) and scale > 0 for scale in scales)
    graph = onnx.load(workspace / "quantize" / "dead" / "dead.onnx")
    held_scales = [
        numpy_helper.to_array(t)
        for t in graph.graph.initializer
        if any(t.name == n.input[1] for n in graph.graph.node if n.op_type == "QuantizeLinear")
    ]
    assert held_scales and all((values > 0).all() for values in held_scales)
    found = reference_session(workspace / "quantize" / "dead" / "dead.onnx").run({"image": held})
    assert np.abs(found["out"]).max() < 1e-15  # the exact shift leaves a rounding of its bias
