"""The graphs of a PAR in ONNX Runtime against the PyTorch modules."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from arvg_trt.errors import ExportError
from arvg_trt.export.shape import ExportShape
from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.par.model import ParTransformer
from arvg_trt.families.par.parity import steps
from arvg_trt.families.shared.cached_steps import (
    StepReferences,
    check_parity,
    compute_step_references,
)
from arvg_trt.families.shared.llama.write import export_llama
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.runtime.sessions.onnxruntime import (
    OnnxRuntimeSession,
    fast_session,
    reference_session,
)
from arvg_trt.workspace.files import decode_json

from ..rar.test_write import fold, relative
from .models import SMALL, TinyPar, random_tokens

Floats = NDArray[np.float32]
GRAPHS = ("step", "full")
LABELS = np.array([2, 0, 5])  # the last is the null class
SEEN = SMALL.length - SMALL.group
BOUNDS = [0, 1, 2, 3, 4, 8, 12, 16]
STEPS = steps(SMALL.length, SMALL.group)
pytestmark = pytest.mark.usefixtures("one_thread")


def session(par: TinyPar, graph: str) -> OnnxRuntimeSession:
    return reference_session(par.folder / f"{graph}.onnx")


def sites(par: TinyPar) -> tuple[Site, ...]:
    found = decode_json(par.folder / "sites.json", SiteMap, do="").sites
    return tuple(s for s in found if s.graph in GRAPHS)


@pytest.mark.parametrize("open_session", [reference_session, fast_session])
@pytest.mark.parametrize("rows", [1, 3])
def test_one_step_graph_makes_all_steps(tiny_par: TinyPar, rows: int, open_session) -> None:
    """The class, single tokens, the special tokens, groups: the logits are those of one pass."""
    labels = torch.from_numpy(LABELS[:rows])
    tokens = random_tokens(SMALL, rows, SEEN)
    whole, _ = tiny_par.transformer.run(labels, tokens)
    sequence = tiny_par.transformer.sequence(labels, tokens).numpy()
    step = open_session(tiny_par.folder / "step.onnx", 1)
    nothing = np.zeros((rows, SMALL.heads, 0, SMALL.head_dim), np.float32)
    kinds = ("past_key", "past_value")
    cache = {f"{kind}.{i}": nothing for kind in kinds for i in range(SMALL.depth)}
    for a, b in pairwise(BOUNDS):
        found = step.run({"tokens": sequence[:, a:b], "position_ids": np.arange(a, b), **cache})
        assert relative(found.pop("logits"), whole[:, a:b]) < 5e-5, (a, b)
        cache = {name.replace("present", "past"): value for name, value in found.items()}
    assert {v.shape[2] for v in cache.values()} == {SMALL.length}


def test_full_graph_equals_the_module(tiny_par: TinyPar) -> None:
    tokens = random_tokens(SMALL, 3, SEEN)
    found = session(tiny_par, "full").run({"labels": LABELS, "tokens": tokens.numpy()})["logits"]
    assert found.shape == (3, SMALL.length, SMALL.vocab_size)
    assert relative(found, tiny_par.transformer(torch.from_numpy(LABELS), tokens)) < 5e-5


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_and_name_what_they_take(tiny_par: TinyPar, graph: str) -> None:
    path = tiny_par.folder / f"{graph}.onnx"
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
            "tokens": ["rows", "n"],
            "position_ids": ["n"],
            **{f"past_{k}": ["rows", c.heads, "past", c.head_dim] for k in cached},
            "logits": ["rows", "n", c.vocab_size],
            **{f"present_{k}": ["rows", c.heads, "past + n", c.head_dim] for k in cached},
        },
        "full": {
            "labels": ["rows"],
            "tokens": ["rows", SEEN],
            "logits": ["rows", c.length, c.vocab_size],
        },
    }
    assert shapes == wanted[graph]
    assert {i.domain: i.version for i in proto.opset_import} == {"": 21}


def test_what_is_constant_is_not_in_the_step(tiny_par: TinyPar) -> None:
    """No angle, no mask, no scale of the scores; the rotation is looked up once."""
    nodes = onnx.load(tiny_par.folder / "step.onnx", load_external_data=False).graph.node
    operators = [n.op_type for n in nodes]
    assert not {"Sin", "Cos", "Where", "Range", "ScatterND", "Expand"} & set(operators)
    assert operators.count("Gather") == 2  # tokens, and the rotation of all layers
    # Four of a rotation, two of the norms, two of the gate; none between scores and softmax.
    assert operators.count("Mul") == 8 * SMALL.depth + 1


def test_sites_are_every_linear_under_its_official_path(tiny_par: TinyPar) -> None:
    modules = tiny_par.transformer.named_modules()
    linears = {name for name, m in modules if isinstance(m, torch.nn.Linear)}
    of = {g: {s.name: s for s in sites(tiny_par) if s.graph == g and s.weight} for g in GRAPHS}
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
    assert first["feed_forward.w1"].shares_input_with == ("layers.0.feed_forward.w3",)
    for name, same in of["full"].items():
        site = of["step"][name]
        assert (site.weight, site.bias, site.role) == (f"{name}.weight", None, same.role)
        assert (site.token_axis, site.position_input) == (1, "position_ids")
        assert (same.token_axis, same.position_input) == (1, None)
        assert site.producer_fold == same.producer_fold is not None
        assert site.excluded is None and same.excluded is None  # the paper takes all linears
    products = [s for s in sites(tiny_par) if s.role.startswith("bmm")]
    assert len(products) == 2 * 2 * SMALL.depth and all(s.excluded for s in products)


@pytest.mark.parametrize(
    "names",
    [
        ("layers.0.attention.wqkv",),
        ("layers.1.attention.wo",),
        ("layers.1.feed_forward.w1", "layers.1.feed_forward.w3"),
        ("layers.0.feed_forward.w2",),
        ("output",),
    ],
    ids=lambda names: names[0],
)
def test_a_fold_changes_the_input_of_its_sites_and_nothing_else(
    tiny_par: TinyPar, names: tuple[str, ...], tmp_path: Path
) -> None:
    """x' = x / s with W' = s W of all sites of the input leaves the logits."""
    of = {s.name: s for s in sites(tiny_par) if s.graph == "full"}
    site = of[names[0]]
    assert site.producer_fold is not None and site.producer_fold.subtract == ()
    rng = np.random.default_rng(0)
    s = np.exp(rng.normal(size=site.weight_shape[0])).astype(np.float32)
    model = onnx.load(tiny_par.folder / "full.onnx")
    watched = onnx.helper.make_tensor_value_info(site.input, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(watched)
    onnx.save(model, tmp_path / "before.onnx")
    values = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    fold(values, site.producer_fold, s, np.zeros_like(s))
    for name in names:
        values[f"{name}.weight"] *= s[:, None]
    for initializer in model.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))
    onnx.save(model, tmp_path / "after.onnx")
    feeds = {"labels": LABELS[:2], "tokens": random_tokens(SMALL, 2, SEEN).numpy()}
    before, after = (
        reference_session(tmp_path / f"{name}.onnx").run(feeds) for name in ("before", "after")
    )
    assert relative(after["logits"], torch.from_numpy(before["logits"])) < 2e-4
    assert relative(after[site.input], torch.from_numpy(before[site.input] / s)) < 1e-4


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Norms that are all ones, in half-precision caches."""
    folder = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    model = ParTransformer(replace(SMALL, depth=1)).eval().requires_grad_(False)
    with WeightFile(folder) as weights:
        export_llama(model, weights, {}, ExportShape(kv_type="float16"))
    return folder


def test_norms_of_equal_weights_stay_apart(untrained: Path) -> None:
    """The exporter merges equal initializers; a fold into one norm must not change another."""
    for graph in GRAPHS:
        found = {i.name for i in onnx.load(untrained / f"{graph}.onnx").graph.initializer}
        wanted = {"layers.0.attention_norm.weight", "layers.0.ffn_norm.weight", "norm.weight"}
        assert wanted <= found


def test_caches_of_half_are_rounded_in_the_step_that_makes_them(untrained: Path) -> None:
    torch.manual_seed(0)
    model = ParTransformer(replace(SMALL, depth=1)).eval().requires_grad_(False)
    labels, tokens = torch.from_numpy(LABELS[1:]), random_tokens(SMALL, 2, SEEN)
    wanted = compute_step_references(model, labels, tokens, ExportShape(kv_type="float16"))
    assert {a.dtype for a in wanted.cache.values()} == {np.dtype(np.float16)}
    exact = model(labels, tokens)
    assert relative(wanted.full, exact) == 0
    assert 1e-6 < relative(wanted.logits, exact) < 2e-2
    found = check_parity(untrained, wanted, STEPS)
    assert all(d.mean <= d.max < 5e-4 for d in found)
    types = reference_session(untrained / "step.onnx").types
    assert {v for k, v in types.items() if "past" in k or "present" in k} == {"float16"}
    assert types["logits"] == "float32"


@pytest.fixture(scope="module")
def references(tiny_par: TinyPar) -> StepReferences:
    tokens = random_tokens(SMALL, 2, SEEN)
    return compute_step_references(tiny_par.transformer, torch.from_numpy(LABELS[1:]), tokens)


def test_parity_covers_every_kind_of_step(tiny_par: TinyPar, references: StepReferences) -> None:
    found = check_parity(tiny_par.folder, references, STEPS)
    seen = [(d.tokens, d.past) for d in found if d.graph == "step" and d.tokens]
    assert seen == [(1, 0), (1, 1), (1, 2), (1, 3), (4, 4), (4, 8), (4, 12)]
    assert {d.graph for d in found} == set(GRAPHS)
    assert len([d for d in found if d.tensor.startswith("present_")]) == 2 * SMALL.depth
    assert all(d.mean <= d.max < 1e-4 for d in found)


@pytest.mark.parametrize(("length", "group"), [(16, 4), (64, 4), (64, 16), (576, 4), (576, 16)])
def test_parity_steps_are_those_of_the_schedule(length: int, group: int) -> None:
    bounds = steps(length, group)
    assert bounds[:group] == [(a, a + 1) for a in range(group)]
    assert bounds[group : group + 2] == [(group, 2 * group), (2 * group, 3 * group)]
    assert bounds[-1] == (length - group, length)
    assert len(bounds) == group + 3
    assert len(steps(4 * group, group)) == group + 3 and len(set(bounds)) == len(bounds)


@pytest.mark.parametrize(
    ("graph", "initializer", "words"),
    [
        ("step", "layers.1.ffn_norm.weight", "step.onnx: logits of .* at 1 tokens behind 0"),
        ("full", "output.weight", "full.onnx: logits of"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    tiny_par: TinyPar,
    references: StepReferences,
    tmp_path: Path,
    graph: str,
    initializer: str,
    words,
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_par.folder, folder)
    model = onnx.load(folder / f"{graph}.onnx")
    values = next(t for t in model.graph.initializer if t.name == initializer)
    changed = numpy_helper.to_array(values) + np.float32(0.01)
    values.CopyFrom(numpy_helper.from_array(changed, initializer))
    onnx.save(model, folder / f"{graph}.onnx")
    with pytest.raises(ExportError, match=words):
        check_parity(folder, references, STEPS)


def test_a_step_at_another_position_is_refused(
    tiny_par: TinyPar, references: StepReferences
) -> None:
    """Guards the check itself: with the rotation of other cells the logits differ."""
    sequence = references.sequence.copy()
    sequence[:, 2:4] = sequence[:, [3, 2]]
    with pytest.raises(ExportError, match=r"step\.onnx: logits .* at 1 tokens behind 2"):
        check_parity(tiny_par.folder, replace(references, sequence=sequence), STEPS)


def test_the_same_weights_are_the_files_of_both_graphs(tiny_par: TinyPar) -> None:
    places = []
    for graph in GRAPHS:
        proto = onnx.load(tiny_par.folder / f"{graph}.onnx", load_external_data=False)
        places.append(
            {
                i.name: next(e.value for e in i.external_data if e.key == "offset")
                for i in proto.graph.initializer
                if i.external_data
            }
        )
    linears = {s.weight for s in sites(tiny_par) if s.weight and s.weight in places[0]}
    assert linears and all(places[0][name] == places[1][name] for name in linears)
