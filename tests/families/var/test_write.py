"""The graphs of a VAR transformer in ONNX Runtime against the PyTorch modules."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from arvg_trt.families.var.config import VarConfig
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var.write import condition_graph
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.sessions.session import Session

from ..shared.graphs import (
    assert_a_fold_changes_the_inputs_of_its_sites_alone,
    assert_every_weight_is_stored_once,
    checked_shapes,
    initializers,
    relative,
)
from .models import SHARED, SMALL, ExportedVar, exported_var, features_of

Floats = NDArray[np.float32]
# Wide enough that the exporter leaves transposed weights to the graph; others it computes itself.
CONFIGS = {
    "adaln": replace(SMALL, width=128, hidden=0),
    "shared adaln": replace(SHARED, attn_l2_norm=False),
}
LABELS = np.array([2, 0, 5, 5])


@pytest.fixture(scope="module", params=CONFIGS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ExportedVar:
    return exported_var(tmp_path_factory, CONFIGS[request.param])


def session_of(exported: ExportedVar, graph: str) -> Session:
    return reference_session(exported.folder / f"{graph}.onnx")


def empty_cache(config: VarConfig, rows: int) -> dict[str, Floats]:
    shape = (rows, config.heads, 0, config.head_dim)
    kinds = ("past_key", "past_value")
    return {f"{k}.{i}": np.zeros(shape, np.float32) for k in kinds for i in range(config.depth)}


def test_condition_graph_equals_the_module(exported: ExportedVar) -> None:
    found = session_of(exported, "condition").run({"labels": LABELS})
    wanted = exported.model.condition(torch.from_numpy(LABELS))
    for name, tensor in zip(("x", "modulation", "head_modulation"), wanted, strict=True):
        assert relative(found[name], tensor) < 1e-5, name


def test_one_step_graph_runs_every_scale_from_an_empty_cache(exported: ExportedVar) -> None:
    """Rows, n and P change from step to step; the logits are those of one full pass."""
    config, model = exported.model.config, exported.model
    features = features_of(config, rows=len(LABELS))
    constant = session_of(exported, "condition").run({"labels": LABELS})
    inputs = np.concatenate([constant.pop("x"), model.word_embed(features).numpy()], axis=1)
    whole = model(torch.from_numpy(LABELS), features)
    session, cache = session_of(exported, "step"), empty_cache(config, len(LABELS))
    for a, b in pairwise(config.bounds):
        feeds = {"x": inputs[:, a:b], "position_ids": np.arange(a, b), **constant, **cache}
        found = session.run(feeds)
        assert relative(found.pop("logits"), whole[:, a:b]) < 5e-5, (a, b)
        cache = {name.replace("present", "past"): value for name, value in found.items()}  # type: ignore[misc]
    assert {v.shape[2] for v in cache.values()} == {config.length}


def test_a_single_row_and_a_single_token_run(exported: ExportedVar) -> None:
    config = exported.model.config
    constant = session_of(exported, "condition").run({"labels": LABELS[:1]})
    feeds = {**constant, "position_ids": np.array([0]), **empty_cache(config, 1)}
    logits = session_of(exported, "step").run(feeds, ["logits"])["logits"]
    wanted = exported.model(torch.from_numpy(LABELS[:1]), features_of(config, rows=1))
    assert relative(logits, wanted[:, :1]) < 5e-5


def test_full_graph_equals_the_module(exported: ExportedVar) -> None:
    features = features_of(exported.model.config, rows=3)
    found = session_of(exported, "full").run({"labels": LABELS[:3], "features": features.numpy()})
    wanted = exported.model(torch.from_numpy(LABELS[:3]), features)
    assert relative(found["logits"], wanted) < 5e-5


@pytest.mark.parametrize("graph", ["condition", "step", "full"])
def test_graphs_are_valid_and_name_what_they_take(exported: ExportedVar, graph: str) -> None:
    shapes = checked_shapes(exported.folder / f"{graph}.onnx")
    c = exported.model.config
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


def test_every_weight_is_stored_once(exported: ExportedVar) -> None:
    graphs = ("condition", "step", "full")
    assert_every_weight_is_stored_once(exported.folder, graphs)
    stored: set[tuple[str, str]] = set()
    for graph in graphs:
        proto = onnx.load(exported.folder / f"{graph}.onnx", load_external_data=False)
        stored |= {
            (i.name, {e.key: e.value for e in i.external_data}["offset"])
            for i in proto.graph.initializer
            if i.data_location == onnx.TensorProto.EXTERNAL
        }
    names = [name for name, _ in stored]
    assert len(names) == len(set(names)), "a name has two places"


def test_sites_are_every_linear_under_its_official_path(exported: ExportedVar) -> None:
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


def test_sites_are_what_the_graphs_hold(exported: ExportedVar) -> None:
    for graph in ("condition", "step", "full"):
        nodes = {n.name: n for n in onnx.load(exported.folder / f"{graph}.onnx").graph.node}
        state = exported.model.state_dict()
        values = initializers(exported.folder / f"{graph}.onnx")
        for site in (s for s in exported.sites if s.graph == graph):
            assert nodes[site.node].op_type == "MatMul"
            assert nodes[site.node].input[0] == site.input
            if site.weight is None:
                assert site.role in ("bmm_qk", "bmm_pv")
                continue
            weight = values[site.weight]
            np.testing.assert_array_equal(weight, state[f"{site.name}.weight"].numpy().T)
            assert site.weight_shape == weight.shape
            assert site.bias is not None and values[site.bias].shape == weight.shape[1:]


def test_merged_equal_biases_are_each_modules_own() -> None:
    """An untrained model's biases are all zero, which the exporter merges into one."""
    model = VarTransformer(SMALL).eval().requires_grad_(False)
    for block in model.blocks:
        torch.nn.init.zeros_(block.ada_lin[1].bias)
    graph = condition_graph(model)
    for name in ("blocks.0.ada_lin.1", "blocks.1.ada_lin.1"):
        adds = [node for node in graph.graph if node.name == f"{name}/Add"]
        assert [str(value.name) for value in adds[0].inputs][1:] == [f"{name}.bias"]


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.mat_qkv", "blocks.1.attn.proj", "blocks.1.ffn.fc1", "head"]
)
def test_a_fold_changes_the_input_of_its_site_and_nothing_else(
    exported: ExportedVar, name: str, tmp_path: Path
) -> None:
    site = next(s for s in exported.sites if s.name == name and s.graph == "full")
    assert site.bias is not None and site.producer_fold is not None and site.producer_fold.subtract
    features = features_of(exported.model.config, rows=2).numpy()
    assert_a_fold_changes_the_inputs_of_its_sites_alone(
        exported.folder / "full.onnx",
        [site],
        {"labels": LABELS[:2], "features": features},
        tmp_path,
    )
