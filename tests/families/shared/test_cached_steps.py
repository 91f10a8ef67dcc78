"""Transformers' graphs with a cache of keys and values in ONNX Runtime against PyTorch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from arvg_trt.errors import ExportError
from arvg_trt.export.shape import ExportShape
from arvg_trt.families.llamagen.parity import steps as llamagen_steps
from arvg_trt.families.par.parity import steps as par_steps
from arvg_trt.families.rar.parity import steps as rar_steps
from arvg_trt.runtime.sessions.open import fast_session, reference_session

from .graphs import (
    assert_a_fold_changes_the_inputs_of_its_sites_alone,
    change,
    checked_shapes,
    copied,
    initializers,
    operators,
    relative,
    sites_of,
)
from .models import TinyExported, exported_once, random_tokens
from .token_families import TokenFamily, cached_of

LABELS = np.array([2, 0, 5])  # the last is the null class
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("open_session", [reference_session, fast_session])
@pytest.mark.parametrize("rows", [1, 3])
def test_one_step_graph_makes_all_steps(
    family: TokenFamily, tiny: TinyExported, rows: int, open_session
) -> None:
    """However many tokens a step may take, the logits are those of one pass."""
    config, labels = family.config, torch.from_numpy(LABELS[:rows])
    tokens = random_tokens(config, rows, family.shown)
    whole, _ = tiny.transformer.run(labels, tokens)
    sequence = tiny.transformer.sequence(labels, tokens).numpy()
    opened = {name: open_session(tiny.folder / f"{name}.onnx", 1) for name in family.graphs[:-1]}
    nothing = np.zeros((rows, config.heads, 0, config.head_dim), np.float32)
    kinds = ("past_key", "past_value")
    for bounds in family.bounds:
        cache = {f"{kind}.{i}": nothing for kind in kinds for i in range(config.depth)}
        for a, b in pairwise(bounds):
            feeds = {"tokens": sequence[:, a:b], "position_ids": np.arange(a, b), **cache}
            if "condition" in opened:
                asked = {"labels": labels.numpy(), "position_ids": np.arange(a, b)}
                feeds |= opened["condition"].run(asked)
            found = opened["step"].run(feeds)
            assert relative(found.pop("logits"), whole[:, a:b]) < 5e-5, (a, b)
            cache = {name.replace("present", "past"): value for name, value in found.items()}
        assert {v.shape[2] for v in cache.values()} == {sequence.shape[1]}


def test_full_graph_equals_the_module(family: TokenFamily, tiny: TinyExported) -> None:
    config, tokens = family.config, random_tokens(family.config, 3, family.shown)
    full = reference_session(tiny.folder / "full.onnx")
    found = full.run({"labels": LABELS, "tokens": tokens.numpy()})["logits"]
    assert found.shape == (3, config.length, config.vocab_size)
    assert relative(found, tiny.transformer(torch.from_numpy(LABELS), tokens)) < 5e-5


def test_graphs_are_valid_and_name_what_they_take(family: TokenFamily, tiny: TinyExported) -> None:
    """A step of a LlamaGen takes one token: nothing has to hide one token from another."""
    c, n = family.config, 1 if family.name == "llamagen" else "n"
    modulation = {
        "modulation": ["rows", "n", c.depth, 6, c.width],
        "head_modulation": ["rows", "n", 2, c.width],
    }
    cached = [f"{kind}.{i}" for kind in ("key", "value") for i in range(c.depth)]
    wanted: dict[str, dict[str, list[object]]] = {
        "condition": {"labels": ["rows"], "position_ids": ["n"], **modulation},
        "step": {
            "tokens": ["rows", n],
            "position_ids": [n],
            **(modulation if family.name == "rar" else {}),
            **{f"past_{k}": ["rows", c.heads, "past", c.head_dim] for k in cached},
            "logits": ["rows", n, c.vocab_size],
            **{f"present_{k}": ["rows", c.heads, f"past + {n}", c.head_dim] for k in cached},
        },
        "full": {
            "labels": ["rows"],
            "tokens": ["rows", family.shown],
            "logits": ["rows", c.length, c.vocab_size],
        },
    }
    for graph in family.graphs:
        assert checked_shapes(tiny.folder / f"{graph}.onnx") == wanted[graph], graph


LLAMA_ROLES = {
    "attention.wqkv": "qkv",
    "attention.wo": "proj",
    "feed_forward.w1": "fc1",
    "feed_forward.w3": "fc1",
    "feed_forward.w2": "fc2",
    "output": "head",
}
ROLES = {
    "par": LLAMA_ROLES,
    "llamagen": LLAMA_ROLES,
    "rar": {
        "attn.qkv": "qkv",
        "attn.proj": "proj",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
        "adaLN_modulation.1": "adaln",
        "adaln_before_head.adaLN_modulation.1": "adaln",
        "lm_head": "head",
    },
}


def test_sites_are_every_linear_under_its_official_path(
    family: TokenFamily, tiny: TinyExported
) -> None:
    linears = {n for n, m in tiny.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    found = sites_of(tiny.folder, family.graphs)
    of = {g: {s.name: s for s in found if s.graph == g and s.weight} for g in family.graphs}
    modulations = {name for name in linears if name.endswith("adaLN_modulation.1")}
    assert of.get("condition", {}).keys() == modulations
    assert of["step"].keys() == linears - modulations
    assert of["full"].keys() == linears
    first = {name for name in linears if ".1." not in name.removesuffix("adaLN_modulation.1")}
    roles = {
        name.removeprefix("layers.0.").removeprefix("blocks.0."): of["full"][name].role
        for name in first
    }
    assert roles == ROLES[family.name]
    for name, same in of["full"].items():
        site = of["condition" if name in modulations else "step"][name]
        assert (site.weight, site.bias, site.role) == (same.weight, same.bias, same.role)
        assert (site.token_axis, site.position_input) == (1, "position_ids")
        assert (same.token_axis, same.position_input) == (1, None)
        assert site.producer_fold == same.producer_fold
        assert site.excluded is None and same.excluded is None  # the paper takes all linears
        if family.name != "rar":
            assert (site.weight, site.bias) == (f"{name}.weight", None)
            assert site.producer_fold is not None
    products = [s for s in found if s.role.startswith("bmm")]
    assert len(products) == 2 * 2 * family.config.depth and all(s.excluded for s in products)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("par", ["layers.0.attention.wqkv"]),
        ("par", ["layers.1.attention.wo"]),
        ("par", ["layers.1.feed_forward.w1", "layers.1.feed_forward.w3"]),
        ("par", ["layers.0.feed_forward.w2"]),
        ("par", ["output"]),
        ("rar", ["blocks.0.attn.qkv"]),
        ("rar", ["blocks.1.attn.proj"]),
        ("rar", ["blocks.1.mlp.fc1"]),
        ("rar", ["lm_head"]),
    ],
    indirect=["family"],
    ids=str,
)
def test_a_fold_changes_the_input_of_its_sites_and_nothing_else(
    family: TokenFamily, tiny: TinyExported, names: list[str], tmp_path: Path
) -> None:
    of = {s.name: s for s in sites_of(tiny.folder, ["full"])}
    tokens = random_tokens(family.config, 2, family.shown).numpy()
    feeds = {"labels": LABELS[:2], "tokens": tokens}
    assert_a_fold_changes_the_inputs_of_its_sites_alone(
        tiny.folder / "full.onnx", [of[name] for name in names], feeds, tmp_path
    )
    has_bias = family.name == "rar"
    assert bool(of[names[0]].producer_fold.subtract) == has_bias


@pytest.mark.parametrize("family", ["par", "llamagen"], indirect=True)
def test_what_is_constant_is_not_in_a_step(family: TokenFamily, tiny: TinyExported) -> None:
    """No angle, no mask, no scale of the scores; the rotation is looked up once."""
    found = operators(tiny.folder / "step.onnx")
    assert not {"Sin", "Cos", "Where", "Range", "ScatterND", "Expand"} & set(found)
    assert found.count("Gather") == 2  # tokens, and the rotation of all layers
    # Four of a rotation, two of the norms, two of the gate; none between scores and softmax.
    assert found.count("Mul") == 8 * family.config.depth + 1


@pytest.fixture
def references(family: TokenFamily, tiny: TinyExported):
    tokens = random_tokens(family.config, 2, family.config.length)
    return family.references(tiny.transformer, torch.from_numpy(LABELS[1:]), tokens)


def test_parity_covers_every_kind_of_step(
    family: TokenFamily, tiny: TinyExported, references
) -> None:
    found = family.check(tiny.folder, references)
    seen = [(d.tokens, d.past) for d in found if d.graph == "step" and d.tokens]
    assert tuple(seen) == family.steps
    assert {d.graph for d in found} == set(family.graphs)
    presents = [d for d in found if d.tensor.startswith("present_")]
    assert len(presents) == 2 * family.config.depth
    assert all(d.mean <= d.max < 1e-4 for d in found)


@pytest.mark.parametrize(("length", "group"), [(16, 4), (64, 4), (64, 16), (576, 4), (576, 16)])
def test_compared_steps_of_a_par_are_those_of_its_schedule(length: int, group: int) -> None:
    bounds = par_steps(length, group)
    assert bounds[:group] == [(a, a + 1) for a in range(group)]
    assert bounds[group : group + 2] == [(group, 2 * group), (2 * group, 3 * group)]
    assert bounds[-1] == (length - group, length)
    assert len(bounds) == group + 3
    assert len(par_steps(4 * group, group)) == group + 3 and len(set(bounds)) == len(bounds)


@pytest.mark.parametrize("length", [1, 4, 256, 576])
def test_compared_steps_of_a_llamagen_are_of_one_token_and_end_at_the_last(length: int) -> None:
    bounds = llamagen_steps(length)
    assert bounds[0] == (0, 1) and bounds[-1] == (length - 1, length)
    assert all(b - a == 1 for a, b in bounds) and len(set(bounds)) == len(bounds) <= 5


@pytest.mark.parametrize("positions", [2, 3, 4, 5, 17, 65, 257])
def test_compared_steps_of_a_rar_cover_all_positions_in_order(positions: int) -> None:
    bounds = list(rar_steps(positions))
    assert bounds[0] == (0, 2) and bounds[-1][1] == positions
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    assert max(b - a for a, b in bounds) <= 32
    assert positions == 2 or bounds[-1] == (positions - 1, positions)


@pytest.mark.parametrize(
    ("family", "graph", "initializer", "words"),
    [
        ("par", "step", "layers.1.ffn_norm.weight", "logits of .* at 1 tokens behind 0"),
        ("par", "full", "output.weight", "logits of"),
        ("llamagen", "step", "layers.1.ffn_norm.weight", "logits of .* at 1 tokens behind 0"),
        ("llamagen", "full", "output.weight", "logits of"),
        ("rar", "condition", "blocks.1.adaLN_modulation.1.bias", "modulation of"),
        ("rar", "step", "blocks.1.mlp.fc2.bias", "logits of .* at 2 tokens behind 0"),
        ("rar", "full", "lm_head.bias", "logits of"),
    ],
    indirect=["family"],
)
def test_a_graph_that_computes_something_else_is_refused(
    family: TokenFamily,
    tiny: TinyExported,
    references,
    tmp_path: Path,
    graph: str,
    initializer: str,
    words: str,
) -> None:
    folder = copied(tiny.folder, tmp_path / "export")
    change(folder / f"{graph}.onnx", initializer, lambda values: values + np.float32(0.01))
    with pytest.raises(ExportError, match=rf"{graph}\.onnx: {words}"):
        family.check(folder, references)


@pytest.fixture
def untrained(family: TokenFamily) -> torch.nn.Module:
    """One layer; weights of norms without a bias are all ones, as before training."""
    model = family.random_transformer(replace(family.config, depth=1))
    for name, parameter in model.named_parameters():
        if "norm" in name and family.name != "rar":
            parameter.fill_(1)
    return model


HALF = ExportShape(kv_type="float16")


@pytest.fixture
def in_half(
    family: TokenFamily, untrained: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Its graphs, with caches of float16."""
    folder, _ = exported_once(
        tmp_path_factory,
        f"untrained-{family.name}",
        untrained.config,
        lambda weights, form: family.export(untrained, weights, {}, form),
        HALF,
    )
    return folder


def test_caches_of_half_are_rounded_in_the_step_that_makes_them(
    family: TokenFamily, untrained: torch.nn.Module, in_half: Path
) -> None:
    """Parity holds with the rounding in PyTorch, which full.onnx has not."""
    tokens = random_tokens(family.config, 2, family.config.length)
    labels = torch.from_numpy(LABELS[1:])
    references = family.references(untrained, labels, tokens, HALF)
    wanted = cached_of(references)
    assert {a.dtype for a in wanted.cache.values()} == {np.dtype(np.float16)}
    exact = untrained(labels, tokens[:, : family.shown])
    assert relative(wanted.full, exact) == 0
    assert 1e-5 < relative(wanted.logits[:, -family.config.length :], exact) < 2e-2
    assert all(d.mean <= d.max < 5e-4 for d in family.check(in_half, references))
    types = reference_session(in_half / "step.onnx").types
    assert {v for k, v in types.items() if "past" in k or "present" in k} == {"float16"}
    assert types["logits"] == "float32"


@pytest.mark.parametrize("family", ["par", "llamagen"], indirect=True)
def test_norms_of_equal_weights_stay_apart(in_half: Path) -> None:
    """The exporter merges equal initializers; a fold into one norm must not change another."""
    for graph in ("step", "full"):
        wanted = {"layers.0.attention_norm.weight", "layers.0.ffn_norm.weight", "norm.weight"}
        assert wanted <= initializers(in_half / f"{graph}.onnx").keys()
