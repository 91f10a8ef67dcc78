"""A plan says the type of a generator's caches, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from arvg_trt.calibrate.calibrated import Calibrated
from arvg_trt.errors import RecipeError
from arvg_trt.graph.sites import load_sites
from arvg_trt.numerics.scheme import CachePlan, Plan
from arvg_trt.quantize.kv_cache.plan import with_caches
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.workspace.files import decode_json
from arvg_trt.workspace.manifest import MANIFEST, Manifest

NAMES = ("blocks.0.attn", "blocks.1.attn")
EMPTY = Plan(sites=())
INT8 = QuantizeOptions(kv_cache="int8")


def opened(export: Path) -> Calibrated:
    manifest = decode_json(export / MANIFEST, Manifest, do="")
    return Calibrated(export, manifest, export, manifest, load_sites(export))


@pytest.fixture
def rar(tiny_rar) -> Calibrated:  # type: ignore[no-untyped-def]
    return opened(tiny_rar.folder)


def test_every_attention_gets_the_type_of_the_options(rar: Calibrated) -> None:
    plan = with_caches(EMPTY, rar, INT8)
    assert plan.caches == tuple(CachePlan(name=name, type="int8") for name in NAMES)


def test_caches_stay_as_exported_where_nothing_is_asked(rar: Calibrated) -> None:
    assert with_caches(EMPTY, rar, QuantizeOptions()) is EMPTY
    assert b"caches" not in msgspec.json.encode(EMPTY)
    assert with_caches(EMPTY, rar, QuantizeOptions(kv_cache="float32")) == EMPTY


def test_entries_of_a_plan_come_before_the_options(rar: Calibrated) -> None:
    own = tuple(CachePlan(name=name, type="fp8", keys="per_head") for name in reversed(NAMES))
    plan = with_caches(Plan(sites=(), caches=own), rar, INT8)
    assert plan.caches == tuple(reversed(own))


def test_an_old_plan_is_read_as_one_that_says_nothing_of_caches() -> None:
    old = b'{"sites": [], "schema": "arvg-trt/plan/v1"}'
    assert msgspec.json.decode(old, type=Plan).caches is msgspec.UNSET


def entry(name: str, kind: str = "int8") -> CachePlan:
    return CachePlan(name=name, type=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([entry("layers.0.attention"), entry("layers.1.attention")], "blocks.0.attn has no cache"),
        ([entry(NAMES[0])], "blocks.1.attn has no cache entry"),
        ([*map(entry, NAMES), entry("blocks.2.attn")], "blocks.2.attn keeps no keys and values"),
        ([*map(entry, NAMES), entry(NAMES[0])], "two entries"),
        ([entry(NAMES[0]), entry(NAMES[1], "fp8")], "the types fp8 and int8"),
    ],
)
def test_entries_of_another_model_are_refused_by_name(
    rar: Calibrated, entries: list[CachePlan], what: str
) -> None:
    with pytest.raises(RecipeError, match=what) as found:
        with_caches(Plan(sites=(), caches=tuple(entries)), rar, QuantizeOptions())
    assert found.value.where == "plan.json" and found.value.do


def test_a_type_without_scales_takes_no_granularity() -> None:
    with pytest.raises(ValueError, match="a cache in float16 has no scales"):
        CachePlan(name="a", type="float16", values="per_head")


@pytest.mark.parametrize("model", ["tiny_mar", "tiny_gsq"])
def test_a_model_without_caches_is_refused(request: pytest.FixtureRequest, model: str) -> None:
    source = opened(request.getfixturevalue(model).workspace / "export")
    with pytest.raises(RecipeError, match="keeps no keys and values between steps") as found:
        with_caches(EMPTY, source, INT8)
    assert found.value.where == "kv_cache" and "--kv-cache" in str(found.value.do)


@pytest.mark.parametrize("ask", [lambda: INT8, lambda: QuantizeOptions(kv_cache="float32")])
def test_caches_that_the_export_rounds_are_refused(
    tiny_rar,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    ask: Callable[[], QuantizeOptions],
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_rar.folder, folder)
    said = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(said | {"kv_type": "float16"}))
    with pytest.raises(RecipeError, match="already rounds its caches to float16"):
        with_caches(EMPTY, opened(folder), ask())
    same = with_caches(EMPTY, opened(folder), QuantizeOptions(kv_cache="float16"))
    assert same == EMPTY
