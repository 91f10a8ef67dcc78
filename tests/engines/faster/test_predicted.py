"""A roofline decides which sites keep their rounded inputs, and TensorRT builds follow it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from arvg_trt.engines.faster.engine_build import plan_of, without
from arvg_trt.engines.faster.facts import KeptIfFaster
from arvg_trt.engines.faster.predicted import choose_by_prediction
from arvg_trt.engines.roofline.calls import GraphCall
from arvg_trt.engines.roofline.machine import Machine
from arvg_trt.engines.roofline.shapes import GraphShapes
from arvg_trt.errors import BuildError
from arvg_trt.graph.sites import load_sites
from arvg_trt.numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import Finished, arvg

FAST = Machine(name="fast", bandwidth=1e15, peaks={"fp16": 1e12, "w8a8": 4e12}, source="test")
NARROW = Machine(name="narrow", bandwidth=1e9, peaks={"fp16": 1e15, "w8a8": 4e15}, source="test")
FACTOR = 1.5


def chosen(
    finished: Finished, *machines: Machine, factor: float = FACTOR
) -> tuple[KeptIfFaster, set[str]]:
    """Return the choice for the encoder of an exported tokenizer, and the sites of its plan."""
    export = finished.workspace / "export"
    site_map = load_sites(export)
    shapes = GraphShapes.read(export / "encoder.onnx")
    plan = msgspec.json.decode(
        (finished.workspace / "quantize" / "int8" / "plan.json").read_bytes(), type=Plan
    )
    axes = tuple(sorted(shapes.axes({"image": (1, 3, 64, 64)}).items()))
    calls = [GraphCall("encoder", axes, 1)]
    found = choose_by_prediction(calls, {"encoder": shapes}, site_map, plan, machines, 1, factor)
    own = {site.name for site in site_map.of_graph("encoder")}
    return found, {entry.name for entry in plan.sites if entry.activation and entry.name in own}


def test_all_are_kept_where_operations_are_the_time_and_four_times_as_fast(
    finished: Finished,
) -> None:
    found, planned = chosen(finished, FAST)
    assert found.kept("encoder") == planned and not found.removed("encoder")
    assert {round(row.ratio, 6) for row in found.rows} == {4}
    assert found.source == "predicted" and found.unquantized == "fp16"
    assert all(row.low is None and row.high is None and row.pairs == 0 for row in found.rows)
    assert all("predicted for fast" in str(row.reason) for row in found.rows)


def test_a_site_has_to_gain_on_every_target(finished: Finished) -> None:
    """Where bytes are the time, sites that give more than they take gain little."""
    found, planned = chosen(finished, FAST, NARROW)
    alone, _ = chosen(finished, NARROW)
    assert found.kept("encoder") == alone.kept("encoder")
    assert found.kept("encoder") | found.removed("encoder") == planned
    assert all(row.ratio <= 4 for row in found.rows)
    worst = min(found.rows, key=lambda row: row.ratio)
    above, _ = chosen(finished, FAST, NARROW, factor=worst.ratio * 1.001)
    assert set(worst.sites) <= above.removed("encoder")


def test_nothing_gains_where_no_site_does(finished: Finished) -> None:
    found, planned = chosen(finished, FAST, factor=5)
    assert not found.is_quantized and found.removed("encoder") == planned
    assert "unquantized" in found.summary


def test_machines_without_a_peak_and_plans_without_rounded_inputs_are_refused(
    finished: Finished,
) -> None:
    with pytest.raises(BuildError, match="its peak in w8a8 is not known"):
        chosen(finished, msgspec.structs.replace(FAST, peaks={"fp16": 1e12}))
    site_map = load_sites(finished.workspace / "export")
    name = site_map.sites[0].name
    for weight, words in ((WeightFormat(bits=8), "weights alone are"), (None, "nothing is")):
        plan = Plan(sites=(SitePlan(name=name, weight=weight),))
        with pytest.raises(BuildError, match=f"{words} quantized"):
            choose_by_prediction([], {}, site_map, plan, [FAST], 1, FACTOR)


def test_sites_that_are_left_out_are_asked_for_no_more(finished: Finished) -> None:
    site_map = load_sites(finished.workspace / "export")
    first = site_map.of_graph("encoder")[3]
    left = without(site_map, {"encoder": {first.name}})
    assert len(left.sites) == len(site_map.sites) - 1
    assert all(first.name not in each.shares_input_with for each in left.of_graph("encoder"))
    rounded = ActivationFormat(bits=8)
    entries = [
        SitePlan(name=each.name, weight=WeightFormat(bits=8), activation=rounded)
        for each in site_map.of_graph("encoder")
    ]
    plan = plan_of(Plan(sites=tuple(entries)), left, "why")
    (changed,) = [entry for entry in plan.sites if entry.activation is None]
    assert changed == SitePlan(name=first.name, reason="why")


def test_an_engine_of_tensorrt_proves_what_the_table_keeps(
    finished: Finished, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    copy = Path(shutil.copytree(finished.workspace, tmp_path / "ws"))
    build = ("build", copy, "--name", "int8", "--backend", "tensorrt_rtx", "--image-size", 64)
    options = ("--target", "rtx4090", "--target", "rtx3090", "--keep-if-faster", 1.5)
    outcome = arvg(*build, *options)
    assert outcome.code == 0, outcome
    folder = copy / "engines" / "int8" / "rtx-sm86-sm89"
    results = json.loads((folder / MANIFEST).read_text())["results"]
    faster = msgspec.convert(results["faster"], KeptIfFaster)
    assert faster.source == "predicted" and not (folder / "decided").exists()
    assert any(faster.removed(graph) for graph in ("encoder", "decoder"))
    for row in results["engines"]:
        count = len(faster.kept(row["graph"]))
        assert row["int8_sites_planned"] == row["int8_sites_proved"] == count
    assert any(faster.kept(graph) for graph in ("encoder", "decoder"))

    # A kit for devices is of the same graphs, and its plan asks for the same sites.
    tar, unpacked = tmp_path / "kit.tar", tmp_path / "unpacked"
    for words in (
        ("bundle", copy, "--name", "int8", "--kit", "-o", tar),
        ("unpack", tar, "--group", "kit", "-o", unpacked),
    ):
        outcome = arvg(*words)
        assert outcome.code == 0, outcome
    (listed,) = unpacked.rglob("sites.json")
    sites = {site["name"] for site in json.loads(listed.read_bytes())["sites"]}
    for graph in ("encoder", "decoder"):
        assert faster.kept(graph) <= sites and not faster.removed(graph) & sites

    # And where none gains, engines are those of the unquantized graphs.
    outcome = arvg(*build, "--target", "rtx4090", "--keep-if-faster", 50)
    assert outcome.code == 0, outcome
    folder = copy / "engines" / "int8" / "rtx-sm89"
    results = json.loads((folder / MANIFEST).read_text())["results"]
    assert results["faster"]["is_quantized"] is False
    assert {row["precision"] for row in results["engines"]} == {"FP16"}
