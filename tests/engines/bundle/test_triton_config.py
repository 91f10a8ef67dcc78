"""Configurations of single models and ensembles, as Triton's own messages and checks take them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from arvg_trt.engines.bundle.text_proto import EnumName, text_proto
from arvg_trt.engines.bundle.triton import ensembles_of
from arvg_trt.engines.bundle.triton_config import Model as Served
from arvg_trt.engines.bundle.triton_config import Tensor, read_model
from arvg_trt.engines.bundle.triton_ensemble import chain
from arvg_trt.errors import WorkspaceError

from .triton_server import (
    check_config,
    check_ensemble,
    load_repository,
    messages,
    open_model,
    parse,
)


def graph_file(
    path: Path,
    inputs: dict[str, tuple[int, tuple[object, ...]]],
    outputs: dict[str, tuple[int, tuple[object, ...] | None]],
) -> Path:
    """A graph that copies its inputs to its outputs, with shapes as given."""
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in zip(inputs, outputs, strict=True)]
    ends = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in each.items()]
        for each in (inputs, outputs)
    ]
    opset = [helper.make_opsetid("", 21)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=opset, ir_version=10),
        path,
    )
    return path


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(
    ("shapes", "batch", "dims"),
    [
        ({"x": ("n", 3), "y": ("n", 5)}, 8, [[3], [5]]),
        ({"x": ("n", 3), "t": ("n",)}, 8, [[3], [1]]),  # dims may not be empty
        ({"x": ("n", 3), "t": ("m",)}, 0, [[-1, 3], [-1]]),  # not one batch
        ({"x": ("n", 3), "t": ()}, 0, [[-1, 3], [1]]),
        ({"x": (2, 3)}, 0, [[2, 3]]),
        ({"x": (None, 3)}, 0, [[-1, 3]]),  # of no name: those of others may be other axes
        ({"x": ("n", "t", 4)}, 8, [[-1, 4]]),
    ],
)
def test_dims_leave_out_the_axis_that_all_tensors_share(
    tmp_path: Path, shapes: dict[str, tuple[object, ...]], batch: int, dims: list[list[int]]
) -> None:
    inputs = {name: (FLOAT, shape) for name, shape in shapes.items()}
    outputs = {f"{name}_out": value for name, value in inputs.items()}
    folder = tmp_path / "repo" / "m"
    (folder / "1").mkdir(parents=True)
    path = graph_file(folder / "1" / "model.onnx", inputs, outputs)
    model = read_model(path, "m", "onnxruntime", batches=True, max_batch=8)
    (folder / "config.pbtxt").write_text(model.config())
    config = load_repository(tmp_path / "repo")["m"]
    assert config.max_batch_size == batch
    assert [list(end.dims) for end in config.input] == dims
    open_model(tmp_path / "repo", config)


def test_an_output_has_the_size_that_follows_from_the_nodes(tmp_path: Path) -> None:
    """ONNX Runtime reports it, and the server wants it exactly, whatever the file says."""
    (tmp_path / "m" / "1").mkdir(parents=True)
    path = tmp_path / "m" / "1" / "model.onnx"
    graph_file(path, {"x": (FLOAT, ("n", 3))}, {"y": (FLOAT, ("n", "some"))})
    model = read_model(path, "m", "onnxruntime", batches=True, max_batch=8)
    assert model.outputs == (Tensor("y", "TYPE_FP32", (3,)),)
    open_model(tmp_path, parse(model.config()))
    graph_file(path, {"x": (FLOAT, ("n", 3))}, {"y": (FLOAT, None)})
    assert read_model(path, "m", "onnxruntime", batches=True, max_batch=8).outputs == model.outputs


@pytest.mark.parametrize(
    ("kind", "shape", "backend", "text"),
    [
        (TensorProto.FLOAT8E4M3FN, ("n",), "onnxruntime", "x is of type FLOAT8E4M3FN"),
        (TensorProto.DOUBLE, ("n",), "tensorrt", "x is of type DOUBLE"),
        (FLOAT, (), "tensorrt", "x has no axes"),
        (INT64, (0, 4), "onnxruntime", "an output without elements"),
    ],
)
def test_what_a_back_end_does_not_take_is_refused(
    tmp_path: Path, kind: int, shape: tuple[object, ...], backend: str, text: str
) -> None:
    path = graph_file(tmp_path / "g.onnx", {"x": (kind, shape)}, {"y": (kind, shape)})
    with pytest.raises(WorkspaceError, match=text):
        read_model(path, "m", backend, batches=True, max_batch=8, profiles=None)


def test_a_profile_decides_the_batch_of_an_engine(tmp_path: Path) -> None:
    shape = ("n", "t", 4)
    path = graph_file(tmp_path / "g.onnx", {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)})

    def read(low: tuple[int, ...], high: tuple[int, ...]) -> Served:
        profiles = {"x": (low, high, high)}
        return read_model(path, "m", "tensorrt", batches=True, max_batch=8, profiles=profiles)

    assert read((1, 6, 4), (5, 6, 4)).max_batch == 5
    assert read((1, 6, 4), (5, 6, 4)).inputs[0].dims == (6, 4)
    assert read((1, 1, 4), (1, 9, 4)).inputs[0].dims == (-1, 4)
    assert read((3, 6, 4), (3, 6, 4)).max_batch == 0  # no request of one image fits
    assert read((3, 6, 4), (3, 6, 4)).inputs[0].dims == (3, 6, 4)


def test_decode_looks_tokens_up_before_it_decodes() -> None:
    """Where the decoder takes a latent, a graph of its own makes that of tokens."""
    graphs = {
        "encoder": served("encoder", 8, {"image": 3}, {"indices": 2, "latent": 4}),
        "lookup": served("lookup", 8, {"indices": 2}, {"latent": 4}),
        "decoder": served("decoder", 8, {"latent": 4}, {"image": 3}),
    }
    encode, decode = ensembles_of("p", graphs, "tokenizer")
    assert (encode.name, decode.name) == ("p-encode", "p-decode")
    assert [step.model for step in decode.steps] == ["m-lookup", "m-decoder"]
    assert [end.name for end in decode.inputs] == ["indices"]
    assert [end.name for end in decode.outputs] == ["image"]
    assert not ensembles_of("p", graphs, "generator")


def served(name: str, batch: int, inputs: dict[str, int], outputs: dict[str, int]) -> Served:
    """A model of float tensors, each with one axis of the given length."""
    ends = [
        tuple(Tensor(key, "TYPE_FP32", (size,)) for key, size in each.items())
        for each in (inputs, outputs)
    ]
    return Served(f"m-{name}", name, "onnxruntime", batch, *ends)


def test_a_chain_names_its_tensors_apart() -> None:
    """Two graphs have an input and an output called x: four tensors, one feeds the next."""
    first, last = served("a", 4, {"x": 3}, {"x": 2, "z": 1}), served("b", 2, {"x": 2}, {"x": 5})
    made = parse(chain("both", (first, last)).config())
    models = {m.name: parse(m.config()) for m in (first, last)} | {"both": made}
    check_ensemble(made, models)
    assert made.max_batch_size == 2
    assert [end.name for end in made.input] == ["x"]
    assert {end.name: list(end.dims) for end in made.output} == {"z": [1], "b_x": [5]}


@st.composite
def chains(draw: st.DrawFn) -> tuple[Served, ...]:
    """Models with tensors of few names, so that they meet in every way; a name has one length."""
    names = st.sampled_from(["x", "y", "z", "a_x", "x_2"])
    size = {"x": 3, "y": 3, "z": 5, "a_x": 3, "x_2": 3}
    made = []
    for graph in ("a", "b", "c")[: draw(st.integers(1, 3))]:
        inputs = draw(st.lists(names, min_size=1, max_size=3, unique=True))
        outputs = draw(st.lists(names, min_size=1, max_size=3, unique=True))
        batch = draw(st.sampled_from([0, 1, 4]))
        lead = {key: size[key] for key in inputs}, {key: size[key] for key in outputs}
        model = served(graph, batch, *lead)
        if not batch:  # whole shapes
            model = Served(
                model.name,
                graph,
                "onnxruntime",
                0,
                *(
                    tuple(Tensor(t.name, t.data_type, (-1, *t.dims)) for t in ends)
                    for ends in (model.inputs, model.outputs)
                ),
            )
        made.append(model)
    return tuple(made)


@given(chains())
def test_any_chain_is_an_ensemble_that_the_server_takes(models: tuple[Served, ...]) -> None:
    made = parse(chain("all", models).config())
    check_config(made)
    check_ensemble(made, {model.name: parse(model.config()) for model in models})
    last = {end.name for end in models[-1].outputs}
    steps = made.ensemble_scheduling.step
    outputs = {end.name for end in made.output}
    assert {steps[-1].output_map[name] for name in last} <= outputs


@given(st.text(), st.lists(st.integers(-1, 2**62), min_size=1), st.integers(0, 2**31 - 1))
def test_any_text_and_number_reads_back(name: str, dims: list[int], batch: int) -> None:
    message = {
        "name": name,
        "max_batch_size": batch,
        "input": ({"name": name, "data_type": EnumName("TYPE_BF16"), "dims": tuple(dims)},),
        "model_transaction_policy": {},
        "ensemble_scheduling": {"step": ({"input_map": ({"key": name, "value": name},)},)},
    }
    found = parse(text_proto(message))
    assert (found.name, found.max_batch_size) == (name, batch)
    assert found.input[0].name == name and list(found.input[0].dims) == dims
    assert messages().DataType.Name(found.input[0].data_type) == "TYPE_BF16"
    assert found.HasField("model_transaction_policy")
    assert dict(found.ensemble_scheduling.step[0].input_map) == {name: name}
