"""Graphs of fixed shapes and of float16 caches beside the dynamic float32 ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from arvg_trt.errors import ExportError
from arvg_trt.export.parity import require, rounded_alike
from arvg_trt.export.shape import DYNAMIC, ExportShape
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var.parity import check_var_parity, compute_references
from arvg_trt.families.var_vqvae.parity import run_in_rows
from arvg_trt.graph.weight_file import WEIGHTS
from arvg_trt.runtime.sessions.open import fast_session, reference_session

from ..families.var.models import SMALL, ExportedVar, exported_var, features_of, random_var

CONFIG = replace(SMALL, depth=1, patch_nums=(1, 2, 3))
HALF = ExportShape(kv_type="float16")
STATIC = ExportShape(static_batch=2, kv_type="float16")
FORMS = {"dynamic": DYNAMIC, "half": HALF, "static": STATIC}
LABELS = torch.tensor([2, 0, 5, 5])
STEPS = tuple(f"step.{k}" for k in range(len(CONFIG.patch_nums)))


@pytest.fixture(scope="module")
def model() -> VarTransformer:
    return random_var(CONFIG)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedVar]:
    return {name: exported_var(tmp_path_factory, CONFIG, form) for name, form in FORMS.items()}


def shapes(path: Path) -> dict[str, list[object]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }


def test_static_steps_have_the_shapes_of_their_scales(exported: dict[str, ExportedVar]) -> None:
    c, rows = CONFIG, 4
    for name, (a, b) in zip(STEPS, pairwise(c.bounds), strict=True):
        path = exported["static"].folder / f"{name}.onnx"
        found = shapes(path)
        assert found["x"] == [rows, b - a, c.width] and found["position_ids"] == [b - a]
        assert found["logits"] == [rows, b - a, c.vocab_size]
        pasts = [n for n in found if n.startswith("past")]
        assert len(pasts) == (2 * c.depth if a else 0)
        assert all(found[n] == [rows, c.heads, a, c.head_dim] for n in pasts)
        assert found["present_value.0"] == [rows, c.heads, b, c.head_dim]
        ops = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert not ops & {"Shape", "Size", "Range"}
    assert shapes(exported["static"].folder / "condition.onnx")["labels"] == [rows]
    assert shapes(exported["static"].folder / "full.onnx")["labels"] == ["rows"]


def test_static_steps_share_the_weights_of_one_file(exported: dict[str, ExportedVar]) -> None:
    """Constants of the shapes are small: all forms have the file of the dynamic one."""
    sizes = {name: (one.folder / WEIGHTS).stat().st_size for name, one in exported.items()}
    assert len(set(sizes.values())) == 1


def test_sites_of_every_step_are_those_of_the_full_graph(exported: dict[str, ExportedVar]) -> None:
    sites = exported["static"].sites
    by_graph = {g: {s.name: s for s in sites if s.graph == g} for g in (*STEPS, "full")}
    for name in STEPS:
        others = {s.name for s in sites if s.role == "adaln"} | {"word_embed"}
        assert by_graph[name].keys() == by_graph["full"].keys() - others
        for site in by_graph[name].values():
            same = by_graph["full"][site.name]
            assert (site.weight, site.bias, site.role) == (same.weight, same.bias, same.role)
            assert site.weight is None or site.position_input == "position_ids"


@pytest.mark.parametrize("name", FORMS)
def test_parity_holds_in_every_form(
    exported: dict[str, ExportedVar], model: VarTransformer, name: str
) -> None:
    form = FORMS[name]
    features = features_of(CONFIG, rows=4)
    references = compute_references(model, LABELS, features, form)
    np.testing.assert_allclose(references.full, model(LABELS, features).numpy(), atol=1e-4)
    found = check_var_parity(exported[name].folder, references)
    steps = [(d.graph, d.tokens, d.past) for d in found if d.tokens is not None]
    graphs = STEPS if form.static_batch else ("step",) * 3
    assert steps == list(zip(graphs, (1, 4, 9), (0, 1, 5), strict=True))
    assert len([d for d in found if d.tensor.startswith("present")]) == 2 * CONFIG.depth
    assert {block.attn.cache_type for block in model.blocks} == {None}


def test_parity_of_another_models_graphs_is_refused(exported: dict[str, ExportedVar]) -> None:
    references = compute_references(random_var(CONFIG, seed=1), LABELS, features_of(CONFIG, 4))
    with pytest.raises(ExportError, match=r"condition\.onnx: x of ONNX Runtime differs"):
        check_var_parity(exported["dynamic"].folder, references)


def test_half_caches_are_the_rounded_keys_and_values(
    exported: dict[str, ExportedVar], model: VarTransformer
) -> None:
    """Half the bytes; the first step's are the rounded ones of float32, its logits nearly so."""
    constant = reference_session(exported["half"].folder / "condition.onnx").run(
        {"labels": LABELS.numpy()}
    )
    outputs = {}
    for name, kind in (("dynamic", np.float32), ("half", np.float16)):
        empty = np.zeros((4, CONFIG.heads, 0, CONFIG.head_dim), kind)
        caches = {f"past_{k}.{i}": empty for k in ("key", "value") for i in range(CONFIG.depth)}
        feeds = {**constant, **caches, "position_ids": np.array([0])}
        outputs[name] = fast_session(exported[name].folder / "step.onnx").run(feeds)
    exact, rounded = outputs["dynamic"], outputs["half"]
    for name in (f"present_{kind}.0" for kind in ("key", "value")):
        assert rounded[name].dtype == np.float16
        assert 2 * rounded[name].nbytes == exact[name].nbytes
        np.testing.assert_array_equal(
            rounded_alike(rounded[name], exact[name].astype(np.float16)),
            exact[name].astype(np.float16),
        )
    error = np.abs(rounded["logits"] - exact["logits"]).max()
    assert 0 < error < 5e-3 * np.sqrt(np.mean(np.square(exact["logits"])))


def test_neighbours_of_float16_are_rounded_alike_and_others_are_not() -> None:
    reference = np.array([1.0, 1.0, -2.0, 0.0, 1e-7], np.float16)
    value = np.nextafter(reference, np.float16(9))
    value[1] = np.nextafter(value[1], np.float16(9))
    found = rounded_alike(value, reference)
    np.testing.assert_array_equal(found == reference, [True, False, True, True, True])


def test_pieces_of_fixed_rows_are_the_whole(exported: dict[str, ExportedVar]) -> None:
    session = reference_session(exported["static"].folder / "condition.onnx")
    whole = reference_session(exported["dynamic"].folder / "condition.onnx")
    labels: NDArray[np.generic] = np.array([0, 1, 2, 3, 4, 5])
    found = run_in_rows(session, {"labels": labels}, 4)
    for name, array in run_in_rows(whole, {"labels": labels}, None).items():
        np.testing.assert_allclose(found[name], array, atol=1e-6)


def test_a_difference_names_graph_and_shape(
    exported: dict[str, ExportedVar], model: VarTransformer
) -> None:
    references = compute_references(model, LABELS, features_of(CONFIG, 4), STATIC)
    references.steps[0, 3] += 1
    with pytest.raises(ExportError, match=r"step\.1\.onnx: logits .* at 4 tokens behind 1 "):
        for one in check_var_parity(exported["static"].folder, references):
            require(one)
