"""Engines of a tiny MAR, its denoiser quantized too: built, checked, executed and reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arvg_trt.engines.onnxruntime.generator import check_runs
from arvg_trt.errors import BuildError
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import arvg, assert_refused
from ...families.mar.models import SMALL

GRAPHS = {"pass", "denoise", "decoder"}
NAME = "all"
PLANNED = {"pass": 4 * (SMALL.encoder_depth + SMALL.decoder_depth), "denoise": 3 * SMALL.head_depth}


@pytest.fixture(scope="module")
def workspace(quantized_mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("mar_engines") / "ws"
    shutil.copytree(quantized_mar, copy)
    outcome = arvg("quantize", copy, "--name", NAME, "--include", "diffloss.net.res_blocks.*")
    assert outcome.code == 0, outcome
    return copy


@pytest.fixture(scope="module")
def engine(workspace: Path) -> Path:
    outcome = arvg("build", workspace, "--name", NAME, "--backend", "onnxruntime")
    assert outcome.code == 0, outcome
    return workspace / "engines" / NAME / "onnxruntime"


def rows_of(folder: Path) -> dict[str, dict]:
    rows = json.loads((folder / MANIFEST).read_text())["results"]["engines"]
    return {row["graph"]: row for row in rows}


def test_both_graphs_compute_in_integers_over_one_file_of_weights(engine: Path) -> None:
    rows = rows_of(engine)
    assert rows.keys() == GRAPHS
    for graph, planned in PLANNED.items():
        kinds = [node.op_type for node in onnx.load(engine / f"{graph}.onnx").graph.node]
        assert kinds.count("MatMulIntegerToFloat") == rows[graph]["int8_sites_proved"] == planned
        assert "DequantizeLinear" not in kinds
    assert {path.suffix for path in engine.iterdir()} == {".onnx", ".data", ".json"}
    assert len(list(engine.glob("*.data"))) == 1


def test_engine_makes_what_its_qdq_graphs_make(
    engine: Path, workspace: Path, tmp_path: Path
) -> None:
    options = {"seed": 3, "iterations": 4, "diffusion_steps": 4, "temperature": 0.5}
    float_ones, wanted, found = (
        Generator.open(folder, session=session).generate([0, 1], **options).tokens.astype(float)
        for folder, session in (
            (workspace, reference_session),
            (workspace / "quantize" / NAME, reference_session),
            (engine, None),
        )
    )
    assert np.square(found - wanted).sum() < 0.5 * np.square(float_ones - wanted).sum()
    outcome = arvg(
        *("generate", engine, "--labels", 1, "-o", tmp_path / "out"),
        *("--iterations", 2, "--diffusion-steps", 2),
    )
    assert outcome.code == 0 and len(list((tmp_path / "out").glob("*_1.png"))) == 1


@pytest.mark.parametrize("graph", PLANNED)
def test_wrong_tables_of_places_or_times_are_refused_at_build_time(
    engine: Path, workspace: Path, tmp_path: Path, graph: str
) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    source, samples = workspace / "quantize" / NAME, workspace / "calibrate" / "samples"
    check_runs(source, copy, samples, sorted(GRAPHS))
    model = onnx.load(copy / f"{graph}.onnx")
    tables = [t for t in model.graph.initializer if t.name.endswith(".token_scale")]
    for tensor in tables:
        wrong = numpy_helper.to_array(tensor).copy()
        wrong[: len(wrong) // 2] *= 30  # random tokens run away: what a block adds is little
        tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    assert tables
    onnx.save(model, copy / f"{graph}.onnx")
    with pytest.raises(BuildError, match=rf"{graph} is .* dB from its Q/DQ graph at"):
        check_runs(source, copy, samples, sorted(GRAPHS))


def test_the_report_is_of_the_engine_as_executed_and_of_its_copy(
    engine: Path, workspace: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    backend = ("--backend", "tensorrt_rtx", "--target", "sm89", "--max-batch", 2)
    outcome = arvg("build", workspace, "--name", NAME, *backend)
    assert outcome.code == 0, outcome
    rows = rows_of(workspace / "engines" / NAME / "rtx-sm89")
    assert {g: rows[g]["int8_sites_proved"] for g in GRAPHS} == {"decoder": 0, **PLANNED}
    given = ("--samples", 2, "--rounds", 2, "--gate", "noise_sqnr_db>=15", "--gate", "speedup>0")
    outcome = arvg("validate", workspace, "--name", NAME, *given)
    assert outcome.code == 0, outcome
    report = json.loads((workspace / "validate" / NAME / "report.json").read_text())
    found = report["generation"]
    assert found.keys() == {"qdq", "twin", "engine"}
    decibels = {
        key: {row["output"]: row["sqnr_db"] for row in made["outputs"]}
        for key, made in found.items()
    }
    for key in ("twin", "engine"):
        for output, value in decibels["qdq"].items():
            assert decibels[key][output] > value - 1.5  # other roundings may also be nearer
    assert found["engine"]["pictures"]["latent_sqnr_db"] is not None
    assert found["twin"]["pictures"] is None
    assert report["latency"]["tokens"]["tokens"] == 2 * SMALL.length


def test_changed_engine_is_refused(engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    (copy / "denoise.onnx").unlink()
    outcome = arvg("generate", copy, "--labels", 1, "-o", tmp_path / "out")
    assert_refused(outcome, 9, "denoise.onnx", "is missing")
