"""The graphs of a RAR in ONNX Runtime against the PyTorch modules."""

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
from arvg_trt.families.rar.parity import References, check_rar_parity, compute_rar_references, steps
from arvg_trt.families.rar.write import export_rar
from arvg_trt.graph.sites import ProducerFold, Site, SiteMap
from arvg_trt.graph.weight_file import INLINE, WEIGHTS
from arvg_trt.runtime.sessions.onnxruntime import OnnxRuntimeSession, reference_session
from arvg_trt.workspace.files import decode_json

from .models import SMALL, TinyRar, random_rar, random_tokens

Floats = NDArray[np.float32]
GRAPHS = ("condition", "step", "full")
LABELS = np.array([2, 0, 5])  # the last is the null class
POSITIONS = SMALL.positions
pytestmark = pytest.mark.usefixtures("one_thread")


def session(rar: TinyRar, graph: str) -> OnnxRuntimeSession:
    return reference_session(rar.folder / f"{graph}.onnx")


def sites(rar: TinyRar) -> tuple[Site, ...]:
    return decode_json(rar.folder / "sites.json", SiteMap, do="").sites


def initializers(rar: TinyRar, graph: str) -> dict[str, NDArray[np.generic]]:
    proto = onnx.load(rar.folder / f"{graph}.onnx")
    return {i.name: numpy_helper.to_array(i) for i in proto.graph.initializer}


def relative(found: NDArray[np.generic], wanted: torch.Tensor) -> float:
    reference = wanted.double().numpy()
    return float(np.abs(found - reference).max() / np.sqrt(np.mean(np.square(reference))))


def test_condition_graph_gives_each_position_its_modulation(tiny_rar: TinyRar) -> None:
    """Any positions in any order, each as the modules have it; gains are 1 + scale."""
    model, ids = tiny_rar.transformer, np.array([3, 0, POSITIONS - 1])
    found = session(tiny_rar, "condition").run({"labels": LABELS, "position_ids": ids})
    condition = model.conditions(torch.from_numpy(LABELS), torch.from_numpy(ids))
    for i, wanted in enumerate(model.modulations(condition)):
        part = found["modulation"][:, :, i]
        assert relative(part.reshape(*part.shape[:2], -1), wanted) < 1e-5
    head = found["head_modulation"]
    assert relative(head.reshape(*head.shape[:2], -1), model.adaln_before_head(condition)) < 1e-5


def empty_cache(rows: int) -> dict[str, Floats]:
    nothing = np.zeros((rows, SMALL.heads, 0, SMALL.head_dim), np.float32)
    kinds = ("past_key", "past_value")
    return {f"{kind}.{i}": nothing for kind in kinds for i in range(SMALL.depth)}


@pytest.mark.parametrize(
    "bounds",
    [[0, *range(2, POSITIONS + 1)], [0, 1, 5, 6, POSITIONS]],
    ids=["prefill and tokens", "chunks"],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_one_step_graph_prefills_and_decodes(
    tiny_rar: TinyRar, bounds: list[int], rows: int
) -> None:
    """Any n behind any cache: the logits are those of one causal pass."""
    labels = torch.from_numpy(LABELS[:rows])
    tokens = random_tokens(SMALL, rows, SMALL.length - 1)
    whole, _ = tiny_rar.transformer.run(labels, tokens)
    sequence = torch.cat((tiny_rar.transformer.prefix(labels), tokens), dim=1).numpy()
    condition, step = session(tiny_rar, "condition"), session(tiny_rar, "step")
    cache = empty_cache(rows)
    for a, b in pairwise(bounds):
        ids = np.arange(a, b)
        constant = condition.run({"labels": labels.numpy(), "position_ids": ids})
        feeds = {"tokens": sequence[:, a:b], "position_ids": ids, **constant, **cache}
        found = step.run(feeds)
        assert relative(found.pop("logits"), whole[:, a:b]) < 5e-5, (a, b)
        cache = {name.replace("present", "past"): value for name, value in found.items()}  # type: ignore[misc]
    assert {v.shape[2] for v in cache.values()} == {POSITIONS}


def test_full_graph_equals_the_module(tiny_rar: TinyRar) -> None:
    tokens = random_tokens(SMALL, 3, SMALL.length - 1)
    found = session(tiny_rar, "full").run({"labels": LABELS, "tokens": tokens.numpy()})["logits"]
    assert found.shape == (3, SMALL.length, SMALL.vocab_size)
    assert relative(found, tiny_rar.transformer(torch.from_numpy(LABELS), tokens)) < 5e-5


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_valid_and_name_what_they_take(tiny_rar: TinyRar, graph: str) -> None:
    path = tiny_rar.folder / f"{graph}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.output)
    }
    c = SMALL
    modulation = {
        "modulation": ["rows", "n", c.depth, 6, c.width],
        "head_modulation": ["rows", "n", 2, c.width],
    }
    cached = [(f"{kind}.{i}") for kind in ("key", "value") for i in range(c.depth)]
    wanted: dict[str, dict[str, list[object]]] = {
        "condition": {"labels": ["rows"], "position_ids": ["n"], **modulation},
        "step": {
            "tokens": ["rows", "n"],
            "position_ids": ["n"],
            **modulation,
            **{f"past_{k}": ["rows", c.heads, "past", c.head_dim] for k in cached},
            "logits": ["rows", "n", c.vocab_size],
            **{f"present_{k}": ["rows", c.heads, "past + n", c.head_dim] for k in cached},
        },
        "full": {
            "labels": ["rows"],
            "tokens": ["rows", c.length - 1],
            "logits": ["rows", c.length, c.vocab_size],
        },
    }
    assert shapes == wanted[graph]
    assert {i.domain: i.version for i in proto.opset_import} == {"": 21}


def test_what_is_constant_is_not_in_the_step(tiny_rar: TinyRar) -> None:
    """No modulation linear, no SiLU: those depend on the class and the position alone."""
    nodes = onnx.load(tiny_rar.folder / "step.onnx", load_external_data=False).graph.node
    assert "Sigmoid" not in {n.op_type for n in nodes}
    assert not [n.name for n in nodes if "adaLN" in n.name]
    assert len([n for n in nodes if n.op_type == "Where"]) == 1  # the mask, once for all blocks


def test_every_weight_is_stored_once(tiny_rar: TinyRar) -> None:
    """The file is no larger than the distinct large tensors, each rounded up to a page."""
    distinct: dict[bytes, int] = {}
    for graph in (*GRAPHS, "encoder", "decoder"):
        for tensor in initializers(tiny_rar, graph).values():
            if tensor.nbytes > INLINE:
                distinct[tensor.tobytes()] = -(-tensor.nbytes // 4096) * 4096
    size = (tiny_rar.folder / WEIGHTS).stat().st_size
    assert sum(distinct.values()) - 4096 < size <= sum(distinct.values())


def test_sites_are_every_linear_under_its_official_path(tiny_rar: TinyRar) -> None:
    modules = tiny_rar.transformer.named_modules()
    linears = {name for name, m in modules if isinstance(m, torch.nn.Linear)}
    of = {g: {s.name: s for s in sites(tiny_rar) if s.graph == g and s.weight} for g in GRAPHS}
    modulations = {name for name in linears if name.endswith("adaLN_modulation.1")}
    assert of["condition"].keys() == modulations
    assert of["step"].keys() == linears - modulations
    assert of["full"].keys() == linears
    roles = {s.name.replace("blocks.0.", ""): s.role for s in of["full"].values()}
    assert {k: v for k, v in roles.items() if "blocks" not in k} == {
        "attn.qkv": "qkv",
        "attn.proj": "proj",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
        "adaLN_modulation.1": "adaln",
        "adaln_before_head.adaLN_modulation.1": "adaln",
        "lm_head": "head",
    }
    for name, same in of["full"].items():
        site = of["condition" if name in modulations else "step"][name]
        assert (site.weight, site.bias, site.role) == (same.weight, same.bias, same.role)
        assert (site.token_axis, site.position_input) == (1, "position_ids")
        assert (same.token_axis, same.position_input) == (1, None)
        assert site.excluded is None and same.excluded is None  # the paper takes all linears
    products = [s for s in sites(tiny_rar) if s.role.startswith("bmm")]
    assert len(products) == 2 * 2 * SMALL.depth and all(s.excluded for s in products)


def test_the_positions_of_a_site_are_the_same_in_all_graphs(tiny_rar: TinyRar) -> None:
    """Statistics of the full graph belong to the positions that a step's `position_ids` name."""
    model = onnx.load(tiny_rar.folder / "full.onnx")
    inputs = [s.input for s in sites(tiny_rar) if s.graph == "full" and s.weight]
    for name in inputs:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(value)
    path = tiny_rar.folder.parent / "full.onnx"
    onnx.save(model, path)
    feeds = {
        "labels": LABELS[:1],
        "tokens": random_tokens(SMALL, 1, SMALL.length - 1).numpy(),
    }
    found = reference_session(path).run(feeds, inputs)
    assert {found[name].shape[1] for name in inputs} == {POSITIONS}


def fold(values: dict[str, NDArray[np.generic]], how: ProducerFold, s: Floats, p: Floats) -> None:
    for part in how.divide:
        array = values[part.initializer]
        at = [slice(None)] * array.ndim
        at[part.axis] = slice(part.start, part.start + s.size)
        shape = [1] * array.ndim
        shape[part.axis] = s.size
        array[tuple(at)] /= s.reshape(shape)
    for part in how.subtract:
        values[part.initializer][part.start : part.start + p.size] -= p


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.1.mlp.fc1", "lm_head"]
)
def test_a_fold_changes_the_input_of_its_site_and_nothing_else(
    tiny_rar: TinyRar, name: str, tmp_path: Path
) -> None:
    """x' = x / s - p with W' = s W and b' = b + p W' leaves the logits; so the fold is right."""
    site = next(s for s in sites(tiny_rar) if s.name == name and s.graph == "full")
    assert site.producer_fold is not None and site.weight is not None and site.bias is not None
    rng = np.random.default_rng(0)
    s = np.exp(rng.normal(size=site.weight_shape[0])).astype(np.float32)
    p = rng.normal(size=site.weight_shape[0]).astype(np.float32)
    model = onnx.load(tiny_rar.folder / "full.onnx")
    watched = onnx.helper.make_tensor_value_info(site.input, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(watched)
    onnx.save(model, tmp_path / "before.onnx")
    values = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    fold(values, site.producer_fold, s, p)
    values[site.weight] *= s[:, None]
    values[site.bias] += p @ values[site.weight]
    for initializer in model.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))
    onnx.save(model, tmp_path / "after.onnx")
    tokens = random_tokens(SMALL, 2, SMALL.length - 1).numpy()
    feeds = {"labels": LABELS[:2], "tokens": tokens}
    before, after = (
        reference_session(tmp_path / f"{name}.onnx").run(feeds) for name in ("before", "after")
    )
    assert relative(after["logits"], torch.from_numpy(before["logits"])) < 2e-4
    wanted = torch.from_numpy(before[site.input] / s - p)
    assert relative(after[site.input], wanted) < 1e-4


@pytest.fixture(scope="module")
def references(tiny_rar: TinyRar) -> References:
    tokens = random_tokens(SMALL, 2, SMALL.length)
    return compute_rar_references(tiny_rar.transformer, torch.from_numpy(LABELS[1:]), tokens)


def test_parity_covers_every_kind_of_step(tiny_rar: TinyRar, references: References) -> None:
    found = check_rar_parity(tiny_rar.folder, references)
    seen = [(d.tokens, d.past) for d in found if d.graph == "step" and d.tokens]
    assert seen == [(2, 0), (1, 2), (1, 3), (12, 4), (1, 16)]
    assert {d.graph for d in found} == set(GRAPHS)
    assert len([d for d in found if d.tensor.startswith("present_")]) == 2 * SMALL.depth
    assert all(d.mean <= d.max < 1e-4 for d in found)


@pytest.mark.parametrize("positions", [2, 3, 4, 5, 17, 65, 257])
def test_parity_steps_cover_all_positions_in_order(positions: int) -> None:
    bounds = list(steps(positions))
    assert bounds[0] == (0, 2) and bounds[-1][1] == positions
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    assert max(b - a for a, b in bounds) <= 32
    assert positions == 2 or bounds[-1] == (positions - 1, positions)


@pytest.mark.parametrize(
    ("graph", "initializer", "words"),
    [
        ("condition", "blocks.1.adaLN_modulation.1.bias", "condition.onnx: modulation of"),
        ("step", "blocks.1.mlp.fc2.bias", "at 2 tokens behind 0"),
        ("full", "lm_head.bias", "full.onnx: logits of"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    tiny_rar: TinyRar, references: References, tmp_path: Path, graph: str, initializer: str, words
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_rar.folder, folder)
    model = onnx.load(folder / f"{graph}.onnx")
    values = next(t for t in model.graph.initializer if t.name == initializer)
    changed = numpy_helper.to_array(values) + np.float32(0.01)
    values.CopyFrom(numpy_helper.from_array(changed, initializer))
    onnx.save(model, folder / f"{graph}.onnx")
    with pytest.raises(ExportError, match=words):
        check_rar_parity(folder, references)


def test_references_of_another_label_are_refused(tiny_rar: TinyRar, references: References) -> None:
    """Guards the check itself: the condition is compared, not only run."""
    other = replace(references, steps=replace(references.steps, labels=np.array([1, 1])))
    with pytest.raises(ExportError, match=r"condition\.onnx: modulation"):
        check_rar_parity(tiny_rar.folder, other)


def test_caches_of_half_are_rounded_in_the_step_that_makes_them(tmp_path: Path) -> None:
    """Parity holds with the rounding in PyTorch, which full.onnx has not; the cache has half the
    bytes."""
    model, half = random_rar(replace(SMALL, depth=1)), ExportShape(kv_type="float16")
    with WeightFile(tmp_path) as weights:
        export_rar(model, weights, {}, half)
    labels, tokens = torch.from_numpy(LABELS[1:]), random_tokens(SMALL, 2, SMALL.length)
    wanted = compute_rar_references(model, labels, tokens, half)
    assert {a.dtype for a in wanted.steps.cache.values()} == {np.dtype(np.float16)}
    exact = model(labels, tokens[:, :-1])
    assert relative(wanted.steps.full, exact) == 0
    assert 1e-5 < relative(wanted.steps.logits[:, 1:], exact) < 2e-2
    found = check_rar_parity(tmp_path, wanted)
    assert all(d.mean <= d.max < 5e-4 for d in found)
    session = reference_session(tmp_path / "step.onnx")
    assert {v for k, v in session.types.items() if "past" in k or "present" in k} == {"float16"}
    assert session.types["logits"] == "float32"
