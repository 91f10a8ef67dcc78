"""Errors of single sites, against products that numpy computes in float64 from the files."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from arvg_trt.calibrate.calibrated import Calibrated
from arvg_trt.explain.site_diagnosis import opened_graphs
from arvg_trt.graph.sites import Site
from arvg_trt.numerics.packing import load_packed_weights
from arvg_trt.numerics.scheme import Plan
from arvg_trt.samples.files import sample_files
from arvg_trt.validate.diagnose.diagnosis import QuantizedGraph
from arvg_trt.validate.diagnose.feeds import save_feeds
from arvg_trt.workspace.files import decode_json
from arvg_trt.workspace.workspace import Workspace

Floats = NDArray[np.float64]
AFTER = {"first": "second", "second": "last"}
RANKING = slice(3)  # the first half of six samples


def silent(task: str, done: int, total: int) -> None:
    pass


def opened(root: Path, name: str, folder: Path, most: int = 2**20) -> tuple[QuantizedGraph, Plan]:
    with Workspace(root / "ws") as workspace:
        source = Calibrated.open(workspace)
        quantized = workspace.folder("quantize", name)
    plan = decode_json(quantized / "plan.json", Plan, do="")
    entries = {entry.name: entry for entry in plan.sites}
    feeds = save_feeds(source.export, source.planned.graphs, source.samples, folder, silent)
    planned = [site for site in source.planned.sites if entries[site.name].weight]
    graphs = opened_graphs(source, quantized, entries, planned, feeds, most, 1)
    return graphs["net"], plan


class Oracle:
    """The network in numpy: exact, or with some sites as plan and packed weights say."""

    def __init__(self, root: Path, name: str) -> None:
        model = onnx.load(root / "net.onnx")
        self.held = {
            each.name: numpy_helper.to_array(each).astype(np.float64)
            for each in model.graph.initializer
        }
        folder = root / "ws" / "quantize" / name
        self.weights, self.tables = load_packed_weights(folder / "weights.safetensors")
        plan = decode_json(folder / "plan.json", Plan, do="")
        self.entries = {entry.name: entry for entry in plan.sites}

    def product(self, site: str, x: Floats, weight: Floats, kind: str) -> Floats:
        """x W, with the `kind` of rounding: output (both), weight, or none."""
        if kind == "none":
            return x @ weight
        scale = self.tables.get(f"{site}.smoothing", np.ones(1)).astype(np.float64)
        center = self.tables.get(f"{site}.center")
        # A scale of the next input goes through the ReLU into this weight, which has it taken back.
        folded = self.tables.get(f"{AFTER.get(site)}.smoothing", np.ones(1)).astype(np.float64)
        rounded = self.weights[site].dequantize().astype(np.float64).T * folded
        activation = self.entries[site].activation
        z = x / scale
        offset = np.zeros(1)
        if center is not None:
            offset = center.astype(np.float64)
        elif activation is not None and activation.scale is not None:
            offset = np.full(1, activation.shift * activation.scale)
        # A centre meets the weight as it was, a shift the rounded one.
        exact = scale.reshape(-1, 1) * weight if center is not None else rounded
        constant = np.broadcast_to(offset, (1, len(weight))) @ exact
        z = z - offset
        if kind == "output" and activation is not None:
            assert activation.scale is not None
            reach = 2 ** (activation.bits - 1)
            z = np.clip(np.rint(z / activation.scale), -reach, reach - 1) * activation.scale
        return z @ rounded + constant

    def run(self, x: Floats, kinds: dict[str, str]) -> dict[str, Floats]:
        """Return what each site gives, its bias included."""
        h, found = self.held, {}
        wide = x - x.mean(-1, keepdims=True)
        n = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5) * h["g"] + h["b"]
        for site, weight, bias in (
            ("first", "w1", "b1"),
            ("second", "w2", "b2"),
            ("last", "w3", ""),
        ):
            y = self.product(site, n, h[weight], kinds.get(site, "none")) + h.get(bias, 0)
            found[site] = y
            n = np.maximum(y, 0)
        return found


def db(exact: Floats, found: Floats) -> float:
    return 10 * math.log10(np.square(exact).sum() / np.square(found - exact).sum())


@pytest.mark.parametrize("name", ["plain", "smooth", "weights"])
def test_errors_are_those_of_the_formula(
    diagnosed_network: Path, tmp_path: Path, name: str
) -> None:
    graph, _ = opened(diagnosed_network, name, tmp_path)
    found = graph.findings(graph.planned, silent)
    oracle = Oracle(diagnosed_network, name)
    x = np.concatenate([feeds["x"] for feeds in graph.fed(RANKING)]).astype(np.float64)
    exact = oracle.run(x, {})
    sites = [site.name for site in graph.planned]
    assert sites == ["first", "second", "last"]
    everything = dict.fromkeys(sites, "output")
    whole = oracle.run(x, everything)
    assert -10 * math.log10(found.noise) == pytest.approx(
        db(exact["last"], whole["last"]), abs=0.01
    )
    for site in sites:
        alone = found.alone[site]
        accumulated = found.accumulated[site].decibels()
        assert accumulated == pytest.approx(db(exact[site], whole[site]), abs=0.01)
        by_itself = oracle.run(x, {site: "output"})
        assert alone.output.decibels() == pytest.approx(db(exact[site], by_itself[site]), abs=0.01)
        at_outputs = -10 * math.log10(found.at_outputs[site])
        assert at_outputs == pytest.approx(db(exact["last"], by_itself["last"]), abs=0.01)
        by_weight = oracle.run(x, {site: "weight"})[site]
        assert alone.weight is not None
        assert alone.weight.decibels() == pytest.approx(db(exact[site], by_weight), abs=0.01)
        if name == "weights":
            assert alone.input is None
            continue
        noise = np.square(by_itself[site] - by_weight).sum()
        wanted = 10 * math.log10(np.square(exact[site]).sum() / noise)
        assert alone.input is not None
        assert alone.input.decibels() == pytest.approx(wanted, abs=0.01)


def test_the_folds_of_this_network_are_those_that_have_to_be_undone(
    diagnosed_network: Path,
) -> None:
    """Else the test above would not see a fold."""
    folder = diagnosed_network / "ws" / "quantize" / "smooth"
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    names = {node.name for node in model.graph.node}
    assert "first/Mul" not in names and "first/input_scale" not in names
    _, tables = load_packed_weights(folder / "weights.safetensors")
    assert np.ptp(tables["first.smoothing"]) > 0.1
    # Through a ReLU into the weight in front.
    assert "second/Mul" not in names and np.ptp(tables["second.smoothing"]) > 0.1


@pytest.mark.parametrize("name", ["plain", "smooth"])
def test_raised_sites_are_exact_and_all_of_them_are_fp32(
    diagnosed_network: Path, tmp_path: Path, name: str
) -> None:
    graph, _ = opened(diagnosed_network, name, tmp_path)
    oracle = Oracle(diagnosed_network, name)
    x = np.concatenate([feeds["x"] for feeds in graph.fed(RANKING)]).astype(np.float64)
    exact = oracle.run(x, {})["last"]
    sites = list(graph.planned)
    for count in range(3):
        for raised in itertools.combinations(sites, count):
            kinds = {s.name: "output" for s in sites if s not in raised}
            noise = graph.raised_noise(raised, RANKING)
            wanted = db(exact, oracle.run(x, kinds)["last"])
            assert -10 * math.log10(noise) == pytest.approx(wanted, abs=0.01)
    assert graph.raised_noise(sites, RANKING) < 1e-11


def test_less_memory_gives_the_same_figures(diagnosed_network: Path, tmp_path: Path) -> None:
    one, _ = opened(diagnosed_network, "smooth", tmp_path / "one")
    two, _ = opened(diagnosed_network, "smooth", tmp_path / "two", most=1)
    wide, narrow = (graph.findings(graph.planned, silent) for graph in (one, two))
    assert narrow.at_outputs == wide.at_outputs and narrow.noise == wide.noise
    for site in wide.alone:
        assert narrow.alone[site].output.decibels() == wide.alone[site].output.decibels()
        assert narrow.accumulated[site].decibels() == wide.accumulated[site].decibels()


def test_feeds_are_read_run_by_run_and_split_in_halves(
    diagnosed_network: Path, tmp_path: Path
) -> None:
    graph, _ = opened(diagnosed_network, "plain", tmp_path)
    files = graph.feeds.runs["net"]
    assert len(files) == len(sample_files(diagnosed_network / "ws" / "calibrate" / "samples")) == 6
    first, second = graph.feeds.halves("net")
    assert [*files[first], *files[second]] == list(files) and len(files[first]) == 3


def test_a_site_is_known_by_its_name(diagnosed_network: Path, tmp_path: Path) -> None:
    graph, _ = opened(diagnosed_network, "plain", tmp_path)
    chosen: list[Site] = [site for site in graph.planned if site.name == "second"]
    found = graph.findings(chosen, silent)
    assert list(found.alone) == list(found.at_outputs) == ["second"]
    assert list(found.accumulated) == ["first", "second", "last"]
