"""Engines of generators for ONNX Runtime: the shipped minis at eight bits, as executed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from arvg_trt.engines.onnxruntime.generator import check_loop
from arvg_trt.errors import BuildError
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import fast_session, reference_session
from arvg_trt.workspace.files import sha256_file
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import arvg, assert_refused
from ...families.rar.models import TinyRar
from ...minis.minis import LABELS, SHOWN, Quantized


@pytest.fixture(scope="module", params=["par", "rar", "var"])
def quantized(
    request: pytest.FixtureRequest, quantized_of: Callable[[str], Quantized]
) -> Quantized:
    return quantized_of(request.param)


@pytest.fixture(scope="module")
def engine(quantized: Quantized) -> Path:
    outcome = arvg("build", quantized.workspace, "--name", "w8a8", "--backend", "onnxruntime")
    assert outcome.code == 0, outcome
    return quantized.workspace / "engines" / "w8a8" / "onnxruntime"


def test_every_planned_product_computes_in_integers(engine: Path) -> None:
    rows = json.loads((engine / MANIFEST).read_text())["results"]["engines"]
    assert all(row["int8_sites_proved"] == row["int8_sites_planned"] for row in rows)
    proved = {row["graph"]: row["int8_sites_proved"] for row in rows}
    assert {"step", "full", "decoder"} <= proved.keys() and not {"encoder", "lookup"} & set(proved)
    for graph in ("step", "full"):
        kinds = [node.op_type for node in onnx.load(engine / f"{graph}.onnx").graph.node]
        assert kinds.count("MatMulIntegerToFloat") == proved[graph] > 20
        assert "DequantizeLinear" not in kinds


def test_weights_of_all_graphs_lie_in_one_file_once(engine: Path) -> None:
    manifest = json.loads((engine / MANIFEST).read_text())
    files = {p.name: p for p in engine.iterdir() if p.name != MANIFEST}
    assert manifest["outputs"] == {name: sha256_file(path) for name, path in files.items()}
    data = files["model.onnx.data"].stat().st_size
    rows = manifest["results"]["engines"]
    assert sum(row["bytes"] for row in rows) == sum(
        path.stat().st_size for name, path in files.items() if name != "generator.json"
    )
    graphs = [onnx.load(path, load_external_data=False) for path in engine.glob("*.onnx")]
    lengths = [
        int(entry.value)
        for graph in graphs
        for tensor in graph.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    ]
    assert data < 0.8 * sum(lengths)


def test_engine_differs_from_its_qdq_graph_by_far_less_than_that_from_float(
    engine: Path, quantized: Quantized
) -> None:
    """Values on the edge of two steps round either way: features times 1 + 1e-6 change the logits
    of the Q/DQ graph as much as the engine does (var-mini: 47.5 and 47.3 dB).
    """
    mini = quantized.mini
    shown = SHOWN[mini.family](mini.made.tokens, mini.workspace / "export")
    sessions = (
        reference_session(mini.workspace / "export" / "full.onnx"),
        reference_session(quantized.folder / "full.onnx"),
        fast_session(engine / "full.onnx"),
    )
    logits = (s.run({"labels": LABELS, **shown})["logits"].astype(np.float64) for s in sessions)
    float_ones, rounded, executed = logits
    rounding, rewriting = (float(np.square(a - rounded).sum()) for a in (float_ones, executed))
    assert 0 < rewriting < 0.5 * rounding


def test_engine_generates_from_its_folder(
    engine: Path, quantized: Quantized, tmp_path: Path
) -> None:
    mini = quantized.mini
    made = Generator.open(engine).generate(LABELS, seed=1, batch_size=10)
    assert mini.losses(LABELS, made.tokens).mean() < 0.7 * math.log(512)
    outcome = arvg("generate", engine, "--labels", "3", "-o", tmp_path / "out")
    assert outcome.code == 0 and len(list((tmp_path / "out").glob("*_3.png"))) == 1


def test_changed_engine_is_refused(engine: Path, tmp_path: Path) -> None:
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    with (copy / "model.onnx.data").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x02")
    outcome = arvg("generate", copy, "--labels", "3", "-o", tmp_path / "out")
    assert_refused(outcome, 9, "model.onnx.data", "was changed after")
    (copy / "decoder.onnx").unlink()
    outcome = arvg("generate", copy, "--labels", "3", "-o", tmp_path / "out")
    assert_refused(outcome, 9, "decoder.onnx", "is missing")


def test_wrong_step_is_refused_at_build_time(
    engine: Path, quantized: Quantized, tmp_path: Path
) -> None:
    """A step whose tables of positions are off by one, which the full graph does not show."""
    copy = tmp_path / "engine"
    shutil.copytree(engine, copy)
    model = onnx.load(copy / "step.onnx")
    tables = [t for t in model.graph.initializer if t.name.endswith(".token_scale")]
    for tensor in tables:
        moved = np.roll(numpy_helper.to_array(tensor), 1, axis=0)
        tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    assert tables
    onnx.save(model, copy / "step.onnx")
    with pytest.raises(BuildError, match=r"step is .* dB from its Q/DQ graph at"):
        check_loop(quantized.folder, copy)


def test_step_of_growing_size_compiles_for_a_gpu_with_every_site_in_int8(
    quantized_of: Callable[[str], Quantized], tmp_path: Path
) -> None:
    """And reports compare the FP16 copy, by a graph of all positions that no engine has."""
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    workspace = tmp_path / "ws"
    shutil.copytree(quantized_of("var").workspace, workspace)
    backend = ("--backend", "tensorrt_rtx", "--target", "sm89")
    outcome = arvg("build", workspace, "--name", "w8a8", *backend)
    assert outcome.code == 0, outcome
    folder = workspace / "engines" / "w8a8" / "rtx-sm89"
    rows = json.loads((folder / MANIFEST).read_text())["results"]["engines"]
    proved = {row["graph"]: row["int8_sites_proved"] for row in rows}
    assert proved == {row["graph"]: row["int8_sites_planned"] for row in rows}
    assert proved["step"] == 25 and proved["condition"] == 7 and "full" not in proved
    precision = {row["graph"]: row["precision"] for row in rows}
    assert (precision["step"], precision["decoder"]) == ("INT8 + FP16", "FP16")
    given = ("--name", "w8a8", "--samples", 2, "--seed", 9, "--rounds", 0)
    outcome = arvg("validate", workspace, *given)
    assert outcome.code == 0, outcome
    report = json.loads((workspace / "validate" / "w8a8" / "report.json").read_text())
    logits = {name: found["logits"] for name, found in report["generation"].items()}
    assert logits["twin"]["sqnr_db"] != logits["qdq"]["sqnr_db"]  # float16 is not float32
    assert logits["twin"]["sqnr_db"] == pytest.approx(logits["qdq"]["sqnr_db"], abs=1)
    assert report["generation"]["twin"]["pictures"] is None
    assert not (folder / "full.onnx").exists()


def test_modulation_with_bits_of_its_own_is_float_with_8_bit_weights(
    tiny_rar: TinyRar, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(tiny_rar.workspace, copy)
    assert arvg("calibrate", copy, "--samples", 2).code == 0
    bits = ("--weight-bits", 6, "--activation-bits", 6)
    outcome = arvg("quantize", copy, "--name", "a6", *bits, "--adaln-bits", 8)
    assert outcome.code == 0, outcome
    entries = json.loads((copy / "quantize" / "a6" / "plan.json").read_text())["sites"]
    modulation = [e for e in entries if "adaLN" in e["name"]]
    assert len(modulation) > 1
    for entry in modulation:
        assert entry["weight"]["bits"] == 8 and entry["activation"] is None
    fc1 = next(e for e in entries if e["name"].endswith("fc1"))
    assert fc1["weight"]["bits"] == 6 and fc1["activation"]["bits"] == 6
    assert arvg("build", copy, "--name", "a6", "--backend", "onnxruntime").code == 0
    engine = copy / "engines" / "a6" / "onnxruntime"
    rows = json.loads((engine / MANIFEST).read_text())["results"]["engines"]
    proved = {row["graph"]: row["int8_sites_proved"] for row in rows}
    assert proved["step"] > 0 and proved["condition"] == 0
