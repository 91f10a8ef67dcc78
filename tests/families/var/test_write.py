"""The graphs of a VAR transformer in ONNX Runtime against the PyTorch modules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.var.config import VarConfig
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var.write import condition_graph, export_var
from arvg_trt.graph.sites import ProducerFold, Site
from arvg_trt.graph.weight_file import INLINE, WEIGHTS
from arvg_trt.runtime.sessions.onnxruntime import OnnxRuntimeSession, reference_session

from .models import SHARED, SMALL, features_of, random_var

Floats = NDArray[np.float32]
# Wide enough that the exporter leaves transposed weights to the graph; others it computes itself.
CONFIGS = {
    "adaln": replace(SMALL, width=128, hidden=0),
    "shared adaln": replace(SHARED, attn_l2_norm=False),
}
LABELS = np.array([2, 0, 5, 5])


@dataclass(frozen=True)
class Exported:
    model: VarTransformer
    folder: Path
    sites: tuple[Site, ...]

    @property
    def config(self) -> VarConfig:
        return self.model.config

    def session(self, graph: str) -> OnnxRuntimeSession:
        return reference_session(self.folder / f"{graph}.onnx")

    def initializers(self, graph: str) -> dict[str, NDArray[np.generic]]:
        proto = onnx.load(self.folder / f"{graph}.onnx")
        return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = random_var(CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("var")
    with WeightFile(folder) as weights:
        sites = export_var(model, weights, {"arvg_trt.model": "tiny"})
    return Exported(model, folder, sites)


def relative(found: NDArray[np.generic], wanted: torch.Tensor) -> float:
    reference = wanted.double().numpy()
    return float(np.abs(found - reference).max() / np.sqrt(np.mean(np.square(reference))))


def empty_cache(config: VarConfig, rows: int) -> dict[str, Floats]:
    shape = (rows, config.heads, 0, config.head_dim)
    kinds = ("past_key", "past_value")
    return {f"{k}.{i}": np.zeros(shape, np.float32) for k in kinds for i in range(config.depth)}


def test_condition_graph_equals_the_module(exported: Exported) -> None:
    found = exported.session("condition").run({"labels": LABELS})
    wanted = exported.model.condition(torch.from_numpy(LABELS))
    for name, tensor in zip(("x", "modulation", "head_modulation"), wanted, strict=True):
        assert relative(found[name], tensor) < 1e-5, name


def test_one_step_graph_runs_every_scale_from_an_empty_cache(exported: Exported) -> None:
    """Rows, n and P change from step to step; the logits are those of one full pass."""
    config, model = exported.config, exported.model
    features = features_of(config, rows=len(LABELS))
    constant = exported.session("condition").run({"labels": LABELS})
    inputs = np.concatenate([constant.pop("x"), model.word_embed(features).numpy()], axis=1)
    whole = model(torch.from_numpy(LABELS), features)
    session, cache = exported.session("step"), empty_cache(config, len(LABELS))
    for a, b in pairwise(config.bounds):
        feeds = {"x": inputs[:, a:b], "position_ids": np.arange(a, b), **constant, **cache}
        found = session.run(feeds)
        assert relative(found.pop("logits"), whole[:, a:b]) < 5e-5, (a, b)
        cache = {name.replace("present", "past"): value for name, value in found.items()}  # type: ignore[misc]
    assert {v.shape[2] for v in cache.values()} == {config.length}


def test_a_single_row_and_a_single_token_run(exported: Exported) -> None:
    config = exported.config
    constant = exported.session("condition").run({"labels": LABELS[:1]})
    feeds = {**constant, "position_ids": np.array([0]), **empty_cache(config, 1)}
    logits = exported.session("step").run(feeds, ["logits"])["logits"]
    wanted = exported.model(torch.from_numpy(LABELS[:1]), features_of(config, rows=1))
    assert relative(logits, wanted[:, :1]) < 5e-5


def test_full_graph_equals_the_module(exported: Exported) -> None:
    features = features_of(exported.config, rows=3)
    found = exported.session("full").run({"labels": LABELS[:3], "features": features.numpy()})
    wanted = exported.model(torch.from_numpy(LABELS[:3]), features)
    assert relative(found["logits"], wanted) < 5e-5


@pytest.mark.parametrize("graph", ["condition", "step", "full"])
def test_graphs_are_valid_and_name_what_they_take(exported: Exported, graph: str) -> None:
    path = exported.folder / f"{graph}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.output)
    }
    c = exported.config
    rest = [c.depth, 6, c.width]
    wanted: dict[str, list[object]] = {
        "condition": ["rows"],
        "step": ["rows", "n", c.width],
        "full": ["rows"],
    }
    assert shapes[{"step": "x"}.get(graph, "labels")] == wanted[graph]
    if graph == "step":
        assert shapes["modulation"] == ["rows", *rest]
        assert shapes["past_key.1"] == ["rows", c.heads, "past", c.head_dim]
        assert shapes["present_value.0"] == ["rows", c.heads, "past + n", c.head_dim]
        assert shapes["logits"] == ["rows", "n", c.vocab_size]
    assert {i.domain: i.version for i in proto.opset_import} == {"": 21}


def test_every_weight_is_stored_once(exported: Exported) -> None:
    """The file is no larger than the distinct large tensors, each rounded up to a page."""
    distinct: dict[bytes, int] = {}
    stored: set[tuple[str, str]] = set()
    for graph in ("condition", "step", "full"):
        for tensor in exported.initializers(graph).values():
            if tensor.nbytes > INLINE:
                distinct[tensor.tobytes()] = -(-tensor.nbytes // 4096) * 4096
        proto = onnx.load(exported.folder / f"{graph}.onnx", load_external_data=False)
        stored |= {
            (i.name, {e.key: e.value for e in i.external_data}["offset"])
            for i in proto.graph.initializer
            if i.data_location == onnx.TensorProto.EXTERNAL
        }
    size = (exported.folder / WEIGHTS).stat().st_size
    assert sum(distinct.values()) - 4096 < size <= sum(distinct.values())
    names = [name for name, _ in stored]
    assert len(names) == len(set(names)), "a name has two places"


def test_sites_are_every_linear_under_its_official_path(exported: Exported) -> None:
    linears = {name for name, m in exported.model.named_modules() if isinstance(m, torch.nn.Linear)}
    by_graph = {
        g: {s.name: s for s in exported.sites if s.graph == g and s.weight}
        for g in ("condition", "step", "full")
    }
    modulations = {name for name in linears if name.endswith("ada_lin.1")}
    assert by_graph["condition"].keys() == modulations
    assert by_graph["step"].keys() == linears - modulations - {"word_embed"}
    assert by_graph["full"].keys() == linears
    assert [n for n, s in by_graph["full"].items() if s.excluded] == ["word_embed"]
    for name, site in by_graph["step"].items():
        same = by_graph["full"][name]
        assert (site.weight, site.bias, site.role) == (same.weight, same.bias, same.role)
        assert (site.token_axis, site.position_input) == (1, "position_ids")
        assert (same.token_axis, same.position_input) == (1, None)


def test_sites_are_what_the_graphs_hold(exported: Exported) -> None:
    for graph in ("condition", "step", "full"):
        nodes = {n.name: n for n in onnx.load(exported.folder / f"{graph}.onnx").graph.node}
        state = exported.model.state_dict()
        initializers = exported.initializers(graph)
        for site in (s for s in exported.sites if s.graph == graph):
            assert nodes[site.node].op_type == "MatMul"
            assert nodes[site.node].input[0] == site.input
            if site.weight is None:
                assert site.role in ("bmm_qk", "bmm_pv")
                continue
            weight = initializers[site.weight]
            np.testing.assert_array_equal(weight, state[f"{site.name}.weight"].numpy().T)
            assert site.weight_shape == weight.shape
            assert site.bias is not None and initializers[site.bias].shape == weight.shape[1:]


def test_merged_equal_biases_are_each_modules_own() -> None:
    """An untrained model's biases are all zero, which the exporter merges into one."""
    model = VarTransformer(SMALL).eval().requires_grad_(False)
    for block in model.blocks:
        torch.nn.init.zeros_(block.ada_lin[1].bias)
    graph = condition_graph(model)
    for name in ("blocks.0.ada_lin.1", "blocks.1.ada_lin.1"):
        adds = [node for node in graph.graph if node.name == f"{name}/Add"]
        assert [str(value.name) for value in adds[0].inputs][1:] == [f"{name}.bias"]


def fold(values: dict[str, NDArray[np.generic]], how: ProducerFold, s: Floats, p: Floats) -> None:
    for part in how.divide:
        if part.initializer in values:
            array = values[part.initializer]
            at = [slice(None)] * array.ndim
            at[part.axis] = slice(part.start, part.start + s.size)
            shape = [1] * array.ndim
            shape[part.axis] = s.size
            array[tuple(at)] /= s.reshape(shape)
    for part in how.subtract:
        if part.initializer in values:
            values[part.initializer][part.start : part.start + p.size] -= p


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.mat_qkv", "blocks.1.attn.proj", "blocks.1.ffn.fc1", "head"]
)
def test_a_fold_changes_the_input_of_its_site_and_nothing_else(
    exported: Exported, name: str, tmp_path: Path
) -> None:
    """x' = x / s - p with W' = s W and b' = b + p W' leaves the logits; so the fold is right."""
    site = next(s for s in exported.sites if s.name == name and s.graph == "full")
    assert site.producer_fold is not None
    rng = np.random.default_rng(0)
    channels = site.weight_shape[0]
    s = np.exp(rng.normal(size=channels)).astype(np.float32)
    p = rng.normal(size=channels).astype(np.float32)
    model = onnx.load(exported.folder / "full.onnx")
    values = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    assert site.weight is not None and site.bias is not None
    fold(values, site.producer_fold, s, p)
    values[site.weight] *= s[:, None]
    values[site.bias] += p @ values[site.weight]
    for initializer in model.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))
    watched = onnx.helper.make_tensor_value_info(site.input, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(watched)
    onnx.save(model, tmp_path / "full.onnx")
    features = features_of(exported.config, rows=2).numpy()
    feeds = {"labels": LABELS[:2], "features": features}
    found = reference_session(tmp_path / "full.onnx").run(feeds)
    wanted = exported.model(torch.from_numpy(LABELS[:2]), torch.from_numpy(features))
    assert relative(found["logits"], wanted) < 2e-4
    original = onnx.load(exported.folder / "full.onnx")
    original.graph.output.append(watched)
    onnx.save(original, tmp_path / "full.onnx")
    x = reference_session(tmp_path / "full.onnx").run(feeds, [site.input])[site.input]
    assert relative(found[site.input], torch.from_numpy(x / s - p)) < 1e-4
