"""Values that destroy a model are refused where their file is decoded, by name and value."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.errors import ArvgError, RecipeError, WorkspaceError
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.numerics.scheme import LEAST_SCALE, MOST_SCALE, ActivationFormat, Plan
from arvg_trt.quantize.plan import make_plan
from arvg_trt.recipe.commands import GenerateOptions
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.runtime.families import find_family
from arvg_trt.runtime.sessions.open import open_session
from arvg_trt.workspace.workspace import WORKSPACE_FILE, Workspace

SITE = {
    "name": "a", "graph": "g", "role": "conv", "op": "Conv", "node": "a", "weight": "a.weight",
    "bias": None, "input": "x", "output": "y", "weight_shape": [4, 3, 1, 1],
}  # fmt: skip
PLAN = {"name": "a", "activation": {"bits": 8, "scale": 0.1}, "smoothing": 0.5}
FOLD = {"divide": [{"initializer": "n", "axis": 0, "start": 0}], "subtract": []}
SAMPLING = {"cfg": 1.5, "top_k": 0, "top_p": 1.0}
CACHED = {"num_classes": 10, "vocab_size": 64, "depth": 2, "width": 8, "heads": 2, "head_dim": 4}
VAR = {
    "family": "var", "patch_nums": [1, 2, 4], "latent_channels": 4, "latent_size": 4,
    "image_size": 32, "defaults": SAMPLING, **CACHED,
}  # fmt: skip
PAR = {
    "family": "par", "side": 4, "group": 4, "image_size": 32, "defaults": SAMPLING, **CACHED,
}  # fmt: skip
MAR = {
    "family": "mar", "side": 4, "latent_channels": 4, "num_classes": 10, "image_size": 32,
    "defaults": {**SAMPLING, "iterations": 8},
}  # fmt: skip


def decode(kind: Any, value: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value), type=kind)


def changed(value: dict[str, Any], path: str, new: object) -> dict[str, Any]:
    """A copy of nested dicts with the value at `a.b` replaced."""
    first, _, rest = path.partition(".")
    return {**value, first: changed(value[first], rest, new) if rest else new}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("activation.scale", 1e30, "activation scale must be"),
        ("activation.scale", 1e-300, "activation scale must be"),
        ("activation.scale", 0.0, "activation scale must be"),
        ("activation.scale", -1.0, "activation scale must be"),
        ("activation.shift", 10**9, "activation shift must be"),
        ("activation.bits", 9, "activation bits must be"),
        ("smoothing", -0.5, "smoothing must be between 0 and 1"),
        ("smoothing", 1.5, "smoothing must be between 0 and 1"),
        ("name", "", "length >= 1"),
    ],
)
def test_a_plan_has_ranges(path: str, value: object, message: str) -> None:
    decode(Plan, {"sites": [PLAN]})
    with pytest.raises(msgspec.ValidationError, match=message):
        decode(Plan, {"sites": [changed(PLAN, path, value)]})


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_scale_is_taken_only_within_its_range(scale: float) -> None:
    fits = LEAST_SCALE <= scale <= MOST_SCALE
    try:
        ActivationFormat(bits=8, scale=scale)
    except ValueError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("channel_axis", 99),
        ("token_axis", -1),
        ("token_axis", 99),
        ("positions", 0),
        ("weight_shape", [0, 3]),
        ("weight_shape", [10**12, 3]),
        ("node", ""),
        ("producer_fold", {**FOLD, "divide": [{"initializer": "n", "axis": 99, "start": 0}]}),
        ("producer_fold", {**FOLD, "divide": [{"initializer": "n", "axis": 0, "start": -1}]}),
        ("shares_input_with", ["b"]),
    ],
)
def test_a_site_has_ranges(path: str, value: object) -> None:
    decode(SiteMap, {"sites": [{**SITE, "producer_fold": FOLD}]})
    with pytest.raises(msgspec.ValidationError):
        decode(SiteMap, {"sites": [{**SITE, path: value}]})


def test_a_site_or_a_graph_comes_once() -> None:
    with pytest.raises(msgspec.ValidationError, match="site a of the graph g comes twice"):
        decode(SiteMap, {"sites": [SITE, SITE]})
    with pytest.raises(msgspec.ValidationError, match="graph g comes twice"):
        decode(SiteMap, {"sites": [SITE], "graphs": ["g", "g"]})
    decode(SiteMap, {"sites": [SITE, {**SITE, "graph": "h"}]})


@pytest.mark.parametrize(
    ("spec", "path", "value"),
    [
        (VAR, "vocab_size", 10**12),
        (VAR, "vocab_size", 0),
        (VAR, "image_size", 10**6),
        (VAR, "image_size", 33),
        (VAR, "patch_nums", [1, 4, 2]),
        (VAR, "patch_nums", [1, 2, 3]),
        (VAR, "patch_nums", [0, 2, 4]),
        (VAR, "heads", 3),
        (VAR, "defaults.cfg", -1.0),
        (VAR, "defaults.top_k", -1),
        (VAR, "defaults.top_p", 0.0),
        (VAR, "defaults.top_p", 1.5),
        (VAR, "defaults.temperature", 0.0),
        (PAR, "side", 10**5),
        (PAR, "group", 3),
        (PAR, "group", 9),
        (PAR, "num_classes", 10**9),
        (MAR, "defaults.iterations", 17),
        (MAR, "defaults.iterations", 0),
        (MAR, "defaults.diffusion_steps", 1001),
        (MAR, "image_size", 34),
    ],
)
def test_generator_json_has_ranges(spec: dict[str, Any], path: str, value: object) -> None:
    kind = find_family(spec["family"]).spec
    decode(kind, spec)
    with pytest.raises(msgspec.ValidationError):
        decode(kind, changed(spec, path, value))


@pytest.mark.parametrize("version", [0, -1, True, 1.5, "old", None, []])
def test_a_workspace_version_is_a_known_number(version: object, tmp_path: Path) -> None:
    (tmp_path / WORKSPACE_FILE).write_text(json.dumps({"version": version}))
    with pytest.raises(WorkspaceError, match="which is no version of a workspace"):
        Workspace(tmp_path).__enter__()


@pytest.mark.parametrize(
    "change",
    [lambda o: {**o, "threads": -1}, lambda o: {**o, "count": 0}, lambda o: {**o, "seed": -1}],
)
def test_options_of_generate_have_ranges(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        GenerateOptions(**change({"labels": ("1",)}))


def test_threads_below_none_are_refused_by_the_session(tmp_path: Path) -> None:
    with pytest.raises(ArvgError, match="threads is -1"):
        open_session(tmp_path / "a.onnx", optimized=True, threads=-1)


@pytest.mark.parametrize("option", [{"adaln_bits": 8}, {"attention": "fp8"}])
def test_an_option_of_parts_that_the_model_lacks_is_refused(option: dict[str, Any]) -> None:
    sites = SiteMap(sites=(msgspec.convert(SITE, Site),), graphs=("g",))
    make_plan(sites, QuantizeOptions())
    with pytest.raises(RecipeError, match="this model has none"):
        make_plan(sites, QuantizeOptions(**option))
