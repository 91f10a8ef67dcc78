"""A roofline against what can be counted by hand, and against PyTorch's own count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from arvg_trt.engines.roofline.calls import GraphCall
from arvg_trt.engines.roofline.machine import Machine, find_machine
from arvg_trt.engines.roofline.predict import predict, product_cost
from arvg_trt.engines.roofline.probe import linear_run, probe
from arvg_trt.engines.roofline.products import Product, graph_products
from arvg_trt.engines.roofline.shapes import GraphShapes
from arvg_trt.errors import BuildError
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.runtime.sessions.open import reference_session

from ...command_line import Finished, arvg, assert_refused

ROUND = Machine(  # figures that divide evenly: a byte a nanosecond
    name="round",
    bandwidth=1e9,
    peaks={"fp32": 1e12, "fp16": 2e12, "w8a16": 2e12, "w4a16": 2e12, "w8a8": 4e12},
    source="made up",
)


def linear(rows: int, depth: int = 1000, width: int = 1000) -> Product:
    return Product("p", "w", rows, rows * depth * width, depth * width, rows * depth, rows * width)


def test_one_row_takes_as_long_as_its_bytes_and_many_as_long_as_their_operations() -> None:
    one, many = linear(1), linear(10_000)
    cost = product_cost(one, "w8a8", ROUND)
    assert cost.seconds == cost.moving == pytest.approx((1e6 + 1e3 + 2e3) / 1e9)
    assert product_cost(one, "w4a16", ROUND).bytes == pytest.approx(1e6 * 4.25 / 8 + 4e3)
    wide = product_cost(many, "fp32", ROUND)
    assert wide.computing == pytest.approx(2 * 1e10 / 1e12)
    assert wide.moving == pytest.approx((4e6 + 8e7) / 1e9)


@given(rows=st.integers(1, 10**5), depth=st.integers(1, 4096), width=st.integers(1, 4096))
def test_fewer_bits_never_take_longer(rows: int, depth: int, width: int) -> None:
    product = linear(rows, depth, width)
    seconds = [product_cost(product, f, ROUND).seconds for f in ("fp32", "fp16", "w8a16", "w4a16")]
    assert seconds == sorted(seconds, reverse=True)
    assert product_cost(product, "w8a8", ROUND).seconds <= seconds[1]


def test_attention_is_not_rounded_and_its_scores_stay_on_the_chip(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"], name="qk"),
        helper.make_node("MatMul", ["scores", "v"], ["out"], name="pv"),
    ]
    shapes = {"q": ["r", 2, "n", 8], "k": ["r", 2, 8, "p"], "v": ["r", 2, "p", 8]}
    graph = helper.make_graph(
        nodes,
        "attention",
        [info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [info("out", TensorProto.FLOAT, ["r", 2, "n", 8])],
        value_info=[info("scores", TensorProto.FLOAT, ["r", 2, "n", "p"])],
    )
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph), path)
    read, axes = GraphShapes.read(path), {"r": 3, "n": 5, "p": 7}
    qk, pv = graph_products(read, axes, {"qk": "bmm_qk", "pv": "bmm_pv"})
    assert (qk.multiplications, pv.multiplications) == (3 * 2 * 5 * 7 * 8,) * 2
    assert (qk.inputs, qk.outputs) == (3 * 2 * 8 * (5 + 7), 0)
    assert (pv.inputs, pv.outputs) == (3 * 2 * 7 * 8, 3 * 2 * 5 * 8)
    assert product_cost(qk, "w8a8", ROUND) == product_cost(qk, "fp16", ROUND)
    scores = graph_products(read, axes, {})[0]
    assert scores.outputs == 3 * 2 * 5 * 7


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, about its pytrees
def test_multiplications_are_those_that_pytorch_counts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Flatten(2),
        nn.Linear(49, 11),
    ).eval()
    image = torch.randn(2, 3, 18, 18)
    path = tmp_path / "m.onnx"
    torch.onnx.export(model, (image,), path, dynamo=True, verbose=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    products = graph_products(GraphShapes.read(path), {}, {})
    assert len(products) == 3
    assert 2 * sum(product.multiplications for product in products) == counter.get_total_flops()


def site_map(path: Path, name: str = "g") -> SiteMap:
    site = Site(
        name="blocks.0.fc1",
        graph=name,
        role="fc1",
        op="MatMul",
        node="product",
        weight="w",
        bias=None,
        input="x",
        output="y",
        weight_shape=(64, 32),
    )
    return SiteMap(sites=(site,), graphs=(name,))


def linear_graph(folder: Path) -> GraphShapes:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [info("x", TensorProto.FLOAT, ["n", 32])],
        [info("y", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor("w", TensorProto.FLOAT, [32, 64], bytes(4 * 32 * 64), raw=True)],
    )
    path = folder / "g.onnx"
    onnx.save(helper.make_model(graph), path)
    return GraphShapes.read(path)


def test_runs_of_all_sizes_add_up_by_site_and_by_phase(tmp_path: Path) -> None:
    graph = linear_graph(tmp_path)
    calls = [GraphCall("g", (("n", 1),), 5), GraphCall("g", (("n", 9),), 2)]
    found = predict(calls, {"g": graph}, site_map(graph.path), ROUND, images=1)
    seconds = (5 * (32 * 64 + 32 + 2 * 64) + 2 * (32 * 64 + 9 * (32 + 2 * 64))) / 1e9
    assert found.total("w8a8") == pytest.approx(seconds)
    sums = found.sites["blocks.0.fc1"]
    assert sums.rows == (1, 9) and sums.seconds["w8a8"] == pytest.approx(seconds)
    assert sums.weight_seconds["w8a8"] == pytest.approx(7 * 32 * 64 / 1e9)
    assert [row.runs for row in found.phases] == [5, 2]
    assert found.phases[0].bandwidth_bound == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rtx9999", "rtx9999"),
        ("sm89", "is a compute capability"),
        ("rtx2060", "not both known"),
        ("missing.json", "missing.json"),
    ],
)
def test_a_target_without_figures_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        find_machine(name)


@pytest.mark.parametrize(
    "changes", [{"bandwidth": 0}, {"bandwidth": -1.0}, {"peaks": {}}, {"peaks": {"w3a3": 1.0}}]
)
def test_a_file_with_impossible_figures_is_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(msgspec.to_builtins(ROUND) | changes))
    with pytest.raises(BuildError, match=r"cpu\.json"):
        find_machine(str(path))


def test_a_probe_is_read_back_and_its_linears_are_right(tmp_path: Path) -> None:
    machine = probe(lambda *_: None, seconds=0.1)
    assert set(machine.peaks) == {"fp32", "w8a8"}
    path = tmp_path / "cpu.json"
    path.write_bytes(msgspec.json.encode(machine))
    assert find_machine(str(path)) == machine
    for form in ("fp32", "w8a8"):
        (output,) = linear_run(form, 3, 64, 32)().values()  # type: ignore[attr-defined]
        assert output.shape == (3, 32)


def test_the_command_prints_a_table_and_one_object(
    mini_of: Callable[[str], object], tmp_path: Path
) -> None:
    workspace = mini_of("var").workspace  # type: ignore[attr-defined]
    shown = arvg("predict", workspace, "--target", "rtx3090", "--batch-size", 2)
    assert shown.code == 0, shown.err
    assert "GeForce RTX 3090, 2 images per batch: a lower bound" in shown.out
    assert shown.out.splitlines()[-1].startswith("all ")
    found = json.loads(arvg("predict", workspace, "--target", "rtx3090", "--json").out)
    total = sum(row["seconds"]["fp16"] for row in found["phases"])
    assert found["seconds"]["fp16"] == pytest.approx(total)
    assert_refused(arvg("predict", workspace, "--target", "orin"), 6)


def test_a_tokenizer_is_predicted_at_the_size_that_is_asked_for(finished: Finished) -> None:
    """Its graphs compute shapes of Reshapes from their input, and have sizes of unknown names."""
    rows = {}
    for side in (64, 128):
        asked = ("--target", "rtx3090", "--image-size", side, "--json")
        found = arvg("predict", finished.workspace, *asked)
        assert found.code == 0, found.err
        rows[side] = json.loads(found.out)["phases"]
    assert [row["graph"] for row in rows[64]] == ["encoder", "decoder"]
    for small, large in zip(rows[64], rows[128], strict=True):
        assert max(large["rows"]) == 4 * max(small["rows"])


def test_sizes_behind_a_computed_reshape_are_those_that_onnxruntime_gives(tmp_path: Path) -> None:
    """Converters compute the shape of a Reshape: [n, 4, h, w] -> [n, 4, h * w]."""
    sizes = {"n": 3, "h": 5, "w": 7}
    nodes = [
        helper.make_node("GroupNormalization", ["x", "s", "b"], ["g"], num_groups=2),
        helper.make_node("Shape", ["g"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"]),
        helper.make_node("Max", ["n", "one"], ["rows"]),
        helper.make_node("Concat", ["rows", "four", "all"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["g", "wanted"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["turned", "weight"], ["y"]),
    ]
    constants = {"zero": [0], "one": [1], "four": [4], "all": [-1]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["?a", "?b", 6])],
        [onnx.numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
        + [
            onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
            for name, shape in {"s": (4,), "b": (4,), "weight": (4, 6)}.items()
        ],
    )
    opset = [helper.make_opsetid("", 21)]
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    x = np.ones((3, 4, 5, 7), np.float32)
    (y,) = reference_session(path).run({"x": x}).values()
    assert GraphShapes.read(path).shape("y", sizes) == y.shape
    assert GraphShapes.read(path).shape("turned", sizes) == (3, 35, 4)
