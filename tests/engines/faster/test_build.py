"""Builds that keep what is faster: table, graphs and manifest agree, whatever the times were."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from arvg_trt.engines.faster import choose, timing
from arvg_trt.engines.faster.pairs import Pairs
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.images import load_image, to_model
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import Finished, arvg, assert_refused
from ...minis.minis import Quantized

FACTOR = 1.02
INTEGER = ("QLinearConv", "MatMulIntegerToFloat", "MatMulInteger")


def plant(monkeypatch: pytest.MonkeyPatch, is_faster: Callable[[str], bool]) -> list[str]:
    """Let sites be twice as fast or as slow with rounded inputs, by the first of a unit's.

    Returns the names that were asked for.
    """
    asked: list[str] = []

    def times(self: timing.SiteTimer, names: Sequence[str], rounds: int) -> Pairs:
        asked.extend(names)
        plain = float(len(names))
        quantized = sum(0.5 if is_faster(name) else 2.0 for name in names)
        return Pairs((plain,) * rounds, (quantized,) * rounds)

    monkeypatch.setattr(timing.SiteTimer, "__call__", times)
    return asked


def plant_whole(monkeypatch: pytest.MonkeyPatch, plain: float, engine: float) -> None:
    def times(fp32: choose.Run, quantized: choose.Run, reporter: object) -> Pairs:
        fp32()
        quantized()
        return Pairs((plain,) * 8, (engine,) * 8)

    monkeypatch.setattr(choose, "time_whole", times)


def built(workspace: Path, name: str, *options: object) -> tuple[Path, dict[str, Any]]:
    """Return the engine's folder and what its manifest says."""
    build = ("build", workspace, "--name", name, "--keep-if-faster", FACTOR, *options)
    outcome = arvg(*build)
    assert outcome.code == 0, outcome
    folder = workspace / "engines" / name / "onnxruntime"
    assert not [path for path in folder.iterdir() if path.is_dir()]
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["options"]["keep_if_faster"] == "1.02"
    assert arvg(*build).out.count("up to date") == 1
    return folder, manifest["results"]


def sites_of(faster: dict[str, Any], graph: str, *, kept: bool) -> set[str]:
    rows = [row for row in faster["rows"] if row["graph"] == graph]
    return {s for row in rows for s in row["sites"] if (row["verdict"] == "kept") is kept}


def integer_sites(path: Path) -> set[str]:
    """Names of the sites whose products a graph of ONNX Runtime computes in integers."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {node.name.rpartition("/")[0] for node in nodes if node.op_type in INTEGER}


def require_consistent(folder: Path, results: dict[str, Any], graph: str) -> None:
    """Compare the table of a graph with its nodes, and with the engine's row."""
    faster = results["faster"]
    wanted = sites_of(faster, graph, kept=True)
    assert integer_sites(folder / f"{graph}.onnx") == wanted
    nodes = onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph.node
    plain = {node.name for node in nodes if node.op_type in ("Conv", "MatMul", "Gemm")}
    assert sites_of(faster, graph, kept=False) <= plain
    (row,) = [row for row in results["engines"] if row["graph"] == graph]
    assert row["int8_sites_planned"] == row["int8_sites_proved"] == len(wanted)
    assert faster["is_quantized"] or not wanted


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.workspace, tmp_path / "ws"))


def test_sites_that_are_planted_slower_compute_in_float(
    copy: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plant(monkeypatch, lambda name: not name.startswith("decoder/"))
    plant_whole(monkeypatch, 2.0, 1.0)
    folder, results = built(copy, "int8")
    faster = results["faster"]
    assert {name.partition("/")[0] for name in asked} == {"encoder", "decoder"}
    assert sites_of(faster, "encoder", kept=True) and not sites_of(faster, "encoder", kept=False)
    assert sites_of(faster, "decoder", kept=False) and not sites_of(faster, "decoder", kept=True)
    for graph in ("encoder", "decoder"):
        require_consistent(folder, results, graph)
    assert faster["source"] == "measured" and faster["unquantized"] == "fp32"
    assert faster["model"]["verdict"] == "kept" and faster["model"]["ratio"] == 2

    # The decoder's inputs are exact: it is as near to FP32 as its rounded weights let it be.
    image = to_model(load_image(finished.validation / "astronaut.png"))
    source = copy / "quantize" / "int8"
    latent = reference_session(source / "encoder.onnx").run({"image": image})["indices"]
    distances = []
    for place in (source, folder):
        runs = [
            reference_session(each / "decoder.onnx").run({"indices": latent})["image"]
            for each in (copy / "export", place)
        ]
        distances.append(float(np.abs(runs[0] - runs[1]).mean()))
    assert 0 < distances[1] < distances[0]


def test_report_shows_the_table_and_validates_the_engine(
    copy: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda name: "conv1" not in name)
    plant_whole(monkeypatch, 2.0, 1.0)
    _, results = built(copy, "int8")
    outcome = arvg("validate", copy, "--recipe", finished.recipe)
    assert outcome.code in (0, 8, 13), outcome  # a gate may fail: FP32 weights are larger
    report = json.loads((copy / "validate" / "int8" / "report.json").read_text())
    assert report["kept_if_faster"]["int8/onnxruntime"] == results["faster"]
    assert report["accuracy"]["engine"]["psnr_vs_fp32"]["mean"] > 30
    page = (copy / "validate" / "int8" / "report.md").read_text()
    assert "Where rounding pays" in page and "removed" in page and "kept" in page


@pytest.mark.parametrize("whole", [False, True], ids=["no site gains", "the whole does not"])
def test_unquantized_model_wins(copy: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    plant(monkeypatch, lambda name: whole)
    plant_whole(monkeypatch, 1.0, 1.1)
    folder, results = built(copy, "int8")
    faster = results["faster"]
    assert faster["is_quantized"] is False and (faster.get("model") is not None) is whole
    for graph in ("encoder", "decoder"):
        assert not sites_of(faster, graph, kept=True)
        require_consistent(folder, results, graph)
    reasons = {row["reason"] for row in faster["rows"]}
    assert all("the whole model is 0.91 times" in r for r in reasons) if whole else True
    image = np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    found, wanted = (
        reference_session(place / "encoder.onnx").run({"image": image})
        for place in (folder, copy / "export")
    )
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4)


def test_a_build_with_true_times_agrees_with_itself(copy: Path) -> None:
    folder, results = built(copy, "int8")
    faster = results["faster"]
    for graph in ("encoder", "decoder"):
        require_consistent(folder, results, graph)
    timed = {site for row in faster["rows"] for site in row["sites"]}
    plan = json.loads((copy / "quantize" / "int8" / "plan.json").read_text())
    assert timed == {entry["name"] for entry in plan["sites"] if entry.get("activation")}
    for row in faster["rows"]:
        assert row["pairs"] >= 8 and row["low"] <= row["ratio"] <= row["high"]
        if row["verdict"] == "kept" and row["reason"] is None:
            assert row["low"] > FACTOR
        assert math.isfinite(row["high"]) and row["quantized_ms"] > 0 < row["unquantized_ms"]


def test_generator_is_decided_by_the_graphs_that_generate(
    quantized_of: Callable[[str], Quantized], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(quantized_of("rar").workspace, tmp_path / "ws"))
    asked = plant(monkeypatch, lambda name: "fc" not in name)
    plant_whole(monkeypatch, 2.0, 1.0)
    folder, results = built(copy, "w8a8")
    timed = {name.partition("/")[0] for name in asked}
    assert "step" in timed and "full" not in timed
    for graph in timed:
        require_consistent(folder, results, graph)
    kept = sites_of(results["faster"], "step", kept=True)
    removed = sites_of(results["faster"], "step", kept=False)
    assert kept and removed and any("fc" in name for name in removed)
    # What accuracy is measured with computes as what generates does.
    full = integer_sites(folder / "full.onnx")
    assert kept <= full and not removed & full
    images = Generator.open(folder, device="cpu").generate([1], seed=3).images
    assert images.shape[0] == 1 and images.std() > 1


def test_bad_input_is_refused_in_one_line(copy: Path) -> None:
    build = ("build", copy, "--name", "int8")
    for factor in ("0", "-2", "nan", "0.99"):
        assert_refused(arvg(*build, "--keep-if-faster", factor), 3, "keep_if_faster must be at")
    assert_refused(
        arvg(*build, "--keep-if-faster", "1.1", "--backend", "openvino"),
        3,
        "keep_if_faster times sites with ONNX Runtime",
    )
    rtx = (*build, "--backend", "tensorrt_rtx", "--keep-if-faster", "1.1")
    assert_refused(arvg(*rtx, "--target", "sm86"), 6, "is a compute capability")
    outcome = arvg("quantize", copy, "--name", "weights", "--activation-bits", 32)
    assert outcome.code == 0, outcome
    only = ("build", copy, "--name", "weights", "--keep-if-faster", "1.1")
    assert_refused(arvg(*only), 6, "weights alone are quantized")
    targets = ("--backend", "tensorrt_rtx", "--target", "rtx4090")
    assert_refused(arvg(*only, *targets), 6, "weights alone are quantized")
