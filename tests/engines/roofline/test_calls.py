"""Shapes alone tell what a generator's sessions really run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from arvg_trt.engines.roofline.calls import generator_calls
from arvg_trt.engines.roofline.shapes import GraphShapes, evaluate
from arvg_trt.errors import BuildError
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.sessions.session import Array, DeviceValue, Session, SessionObserver

Seen = Counter[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]]


class Watched(SessionObserver):
    """Notes the shapes of all that a session is fed."""

    def __init__(self, session: Session, seen: Seen) -> None:
        super().__init__(session)
        self.seen = seen

    def note(self, feeds: Mapping[str, Array | DeviceValue]) -> None:
        shapes = {
            name: value.shape if isinstance(value, np.ndarray) else tuple(value.shape())
            for name, value in feeds.items()
        }
        self.seen[self.path.stem, tuple(sorted(shapes.items()))] += 1

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        self.note(feeds)
        return super().run(feeds, outputs)

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        self.note(feeds)
        return super().run_on_device(feeds, host)


@pytest.mark.parametrize("model", ["tiny_rar", "tiny_par", "tiny_llamagen", "tiny_mar"])
def test_a_batch_runs_what_the_model_really_runs(
    model: str, request: pytest.FixtureRequest
) -> None:
    export = request.getfixturevalue(model).folder
    seen: Seen = Counter()

    def watched(path: Path, threads: int) -> Session:
        return Watched(reference_session(path, threads), seen)

    labels = np.arange(3)
    real = Generator.open(export, session=watched, verify=False)
    real.generate(labels, batch_size=3, greedy=True)
    calls, graphs = generator_calls(export, 3)
    wanted: Counter[tuple[str, tuple[tuple[str, int], ...]]] = Counter()
    for (graph, shapes), runs in seen.items():
        axes = graphs[graph].axes(dict(shapes))
        wanted[graph, tuple(sorted(axes.items()))] += runs
    assert {(call.graph, call.axes): call.runs for call in calls} == dict(wanted)
    assert len(calls) > 2


@given(past=st.integers(0, 10**6), n=st.integers(1, 10**6))
def test_sizes_are_sums_and_products_of_axes(past: int, n: int) -> None:
    axes = {"past": past, "n": n}
    assert evaluate("past + n", axes) == past + n
    assert evaluate("2*(past + n) - n", axes) == 2 * (past + n) - n
    assert evaluate("(past*n + 7) // 4", axes) == (past * n + 7) // 4


@pytest.mark.parametrize("text", ["__import__('os')", "past ** n", "1.5", "past.real", "f(n)"])
def test_nothing_else_is_evaluated(text: str) -> None:
    with pytest.raises(TypeError):
        evaluate(text, {"past": 1, "n": 2})


def graph_file(folder: Path, nodes: Sequence[onnx.NodeProto]) -> Path:
    """A graph of these nodes with an input [b, 8*h] that makes `y`."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, ["b", "8*h"])],
        [info("y", TensorProto.FLOAT, ["b", "u7"])],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [0, -1])],
    )
    path = folder / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def test_a_name_that_no_input_has_is_inferred(tmp_path: Path) -> None:
    shapes = GraphShapes.read(
        graph_file(
            tmp_path,
            [helper.make_node("Relu", ["x"], ["z"]), helper.make_node("Identity", ["z"], ["y"])],
        )
    )
    axes = shapes.axes({"x": (3, 40)})
    assert axes == {"b": 3, "h": 5}
    assert shapes.shape("z", axes) == (3, 40)


def test_axes_of_any_name_are_taken(tmp_path: Path) -> None:
    path = graph_file(tmp_path, [helper.make_node("Identity", ["x"], ["y"])])
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch-size 1"
        value.type.tensor_type.shape.dim[1].dim_param = "p2o.Dynamic.0"
    onnx.save(model, path)
    shapes = GraphShapes.read(path)
    axes = shapes.axes({"x": (3, 40)})
    assert shapes.shape("y", axes) == (3, 40)


def test_a_shape_that_follows_from_nothing_is_refused_with_the_tensor(tmp_path: Path) -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["z"]), helper.make_node("Identity", ["x"], ["y"])]
    shapes = GraphShapes.read(graph_file(tmp_path, nodes))
    with pytest.raises(BuildError, match=r"shape of z does not follow.*\(b, h\)"):
        shapes.shape("z", {"b": 3, "h": 5})
