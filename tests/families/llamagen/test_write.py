"""The graphs of a LlamaGen in ONNX Runtime against the PyTorch modules."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from arvg_trt.errors import ExportError
from arvg_trt.export.shape import ExportShape
from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.llamagen.parity import steps
from arvg_trt.families.shared.cached_steps import (
    StepReferences,
    check_parity,
    compute_step_references,
)
from arvg_trt.families.shared.llama.write import export_llama
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.runtime.sessions.onnxruntime import fast_session, reference_session
from arvg_trt.workspace.files import decode_json

from ..par.models import random_tokens
from ..rar.test_write import relative
from .models import SEEN, SMALL, TinyLlamagen, random_llamagen

GRAPHS = ("step", "full")
LABELS = np.array([2, 0, 5])  # the last is the null class
pytestmark = pytest.mark.usefixtures("one_thread")


def sites(llamagen: TinyLlamagen) -> tuple[Site, ...]:
    found = decode_json(llamagen.folder / "sites.json", SiteMap, do="").sites
    return tuple(s for s in found if s.graph in GRAPHS)


@pytest.mark.parametrize("open_session", [reference_session, fast_session])
@pytest.mark.parametrize("rows", [1, 3])
def test_one_step_graph_makes_all_steps(
    tiny_llamagen: TinyLlamagen, rows: int, open_session
) -> None:
    """The class, then all tokens but the last: the logits are those of one pass."""
    labels, tokens = torch.from_numpy(LABELS[:rows]), random_tokens(SMALL, rows, SEEN)
    whole, _ = tiny_llamagen.transformer.run(labels, tokens)
    sequence = tiny_llamagen.transformer.sequence(labels, tokens).numpy()
    step = open_session(tiny_llamagen.folder / "step.onnx", 1)
    nothing = np.zeros((rows, SMALL.heads, 0, SMALL.head_dim), np.float32)
    kinds = ("past_key", "past_value")
    cache = {f"{kind}.{i}": nothing for kind in kinds for i in range(SMALL.depth)}
    for k in range(SMALL.length):
        own = {"tokens": sequence[:, k : k + 1], "position_ids": np.array([k])}
        found = step.run({**own, **cache})
        assert relative(found.pop("logits"), whole[:, k : k + 1]) < 5e-5, k
        cache = {name.replace("present", "past"): value for name, value in found.items()}
    assert {v.shape[2] for v in cache.values()} == {SMALL.length}


def test_full_graph_equals_the_module(tiny_llamagen: TinyLlamagen) -> None:
    tokens = random_tokens(SMALL, 3, SEEN)
    full = reference_session(tiny_llamagen.folder / "full.onnx")
    found = full.run({"labels": LABELS, "tokens": tokens.numpy()})["logits"]
    assert found.shape == (3, SMALL.length, SMALL.vocab_size)
    assert relative(found, tiny_llamagen.transformer(torch.from_numpy(LABELS), tokens)) < 5e-5


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_and_name_what_they_take(tiny_llamagen: TinyLlamagen, graph: str) -> None:
    """A step takes one token, so that nothing in it has to hide one token from another."""
    path = tiny_llamagen.folder / f"{graph}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.output)
    }
    c = SMALL
    cached = [(f"{kind}.{i}") for kind in ("key", "value") for i in range(c.depth)]
    wanted: dict[str, dict[str, list[object]]] = {
        "step": {
            "tokens": ["rows", 1],
            "position_ids": [1],
            **{f"past_{k}": ["rows", c.heads, "past", c.head_dim] for k in cached},
            "logits": ["rows", 1, c.vocab_size],
            **{f"present_{k}": ["rows", c.heads, "past + 1", c.head_dim] for k in cached},
        },
        "full": {
            "labels": ["rows"],
            "tokens": ["rows", SEEN],
            "logits": ["rows", c.length, c.vocab_size],
        },
    }
    assert shapes == wanted[graph]
    assert {i.domain: i.version for i in proto.opset_import} == {"": 21}


def test_what_is_constant_is_not_in_the_step(tiny_llamagen: TinyLlamagen) -> None:
    """No angle, no mask, no scale of the scores; the rotation is looked up once."""
    nodes = onnx.load(tiny_llamagen.folder / "step.onnx", load_external_data=False).graph.node
    operators = [n.op_type for n in nodes]
    assert not {"Sin", "Cos", "Where", "Range", "ScatterND", "Expand"} & set(operators)
    assert operators.count("Gather") == 2  # tokens, and the rotation of all layers


def test_sites_are_every_linear_under_its_official_path(tiny_llamagen: TinyLlamagen) -> None:
    modules = tiny_llamagen.transformer.named_modules()
    linears = {name for name, m in modules if isinstance(m, torch.nn.Linear)}
    of = {g: {s.name: s for s in sites(tiny_llamagen) if s.graph == g and s.weight} for g in GRAPHS}
    assert of["step"].keys() == of["full"].keys() == linears
    first = {k.removeprefix("layers.0."): s for k, s in of["full"].items() if "layers.1" not in k}
    assert {k: s.role for k, s in first.items()} == {
        "attention.wqkv": "qkv",
        "attention.wo": "proj",
        "feed_forward.w1": "fc1",
        "feed_forward.w3": "fc1",
        "feed_forward.w2": "fc2",
        "output": "head",
    }
    for name, twin in of["full"].items():
        site = of["step"][name]
        assert (site.weight, site.bias, site.role) == (f"{name}.weight", None, twin.role)
        assert (site.token_axis, site.position_input) == (1, "position_ids")
        assert (twin.token_axis, twin.position_input) == (1, None)
        assert site.producer_fold == twin.producer_fold is not None
        assert site.excluded is None and twin.excluded is None


@pytest.fixture(scope="module")
def references(tiny_llamagen: TinyLlamagen) -> StepReferences:
    labels, tokens = torch.from_numpy(LABELS[1:]), random_tokens(SMALL, 2, SEEN)
    return compute_step_references(tiny_llamagen.transformer, labels, tokens)


def test_parity_covers_the_first_steps_the_middle_and_the_last(
    tiny_llamagen: TinyLlamagen, references: StepReferences
) -> None:
    found = check_parity(tiny_llamagen.folder, references, steps(SMALL.length))
    seen = [(d.tokens, d.past) for d in found if d.graph == "step" and d.tokens]
    assert seen == [(1, 0), (1, 1), (1, 2), (1, 8), (1, 15)]
    assert {d.graph for d in found} == set(GRAPHS)
    assert len([d for d in found if d.tensor.startswith("present_")]) == 2 * SMALL.depth
    assert all(d.mean <= d.max < 1e-4 for d in found)


@pytest.mark.parametrize("length", [1, 4, 256, 576])
def test_parity_steps_are_of_one_token_and_end_at_the_last(length: int) -> None:
    bounds = steps(length)
    assert bounds[0] == (0, 1) and bounds[-1] == (length - 1, length)
    assert all(b - a == 1 for a, b in bounds) and len(set(bounds)) == len(bounds) <= 5


@pytest.mark.parametrize(
    ("graph", "initializer", "words"),
    [
        ("step", "layers.1.ffn_norm.weight", "step.onnx: logits of .* at 1 tokens behind 0"),
        ("full", "output.weight", "full.onnx: logits of"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    tiny_llamagen: TinyLlamagen,
    references: StepReferences,
    tmp_path: Path,
    graph: str,
    initializer: str,
    words: str,
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_llamagen.folder, folder)
    model = onnx.load(folder / f"{graph}.onnx")
    values = next(t for t in model.graph.initializer if t.name == initializer)
    changed = numpy_helper.to_array(values) + np.float32(0.01)
    values.CopyFrom(numpy_helper.from_array(changed, initializer))
    onnx.save(model, folder / f"{graph}.onnx")
    with pytest.raises(ExportError, match=words):
        check_parity(folder, references, steps(SMALL.length))


def test_caches_of_half_are_rounded_in_the_step_that_makes_them(tmp_path: Path) -> None:
    model, form = random_llamagen(replace(SMALL, depth=1)), ExportShape(kv_type="float16")
    with WeightFile(tmp_path) as weights:
        export_llama(model, weights, {}, form)
    labels, tokens = torch.from_numpy(LABELS[1:]), random_tokens(SMALL, 2, SEEN)
    wanted = compute_step_references(model, labels, tokens, form)
    assert {a.dtype for a in wanted.cache.values()} == {np.dtype(np.float16)}
    exact = model(labels, tokens)
    assert relative(wanted.full, exact) == 0
    assert 1e-6 < relative(wanted.logits, exact) < 2e-2
    found = check_parity(tmp_path, wanted, steps(SMALL.length))
    assert all(d.mean <= d.max < 5e-4 for d in found)
