"""Another runner, and PyTorch, on the held-out feeds of a validation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arvg_trt.families.variants import find_model, shipped_checkpoint
from arvg_trt.recipe.file import load_recipe
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.validate.measure.tokenizer_measurement import TokenizerMeasurement
from arvg_trt.validate.opinion.by_polygraphy import compared
from arvg_trt.validate.opinion.by_torch import opinion_of_torch, run_by_torch
from arvg_trt.validate.opinion.checkpoint import FoundCheckpoint, find_checkpoint
from arvg_trt.validate.opinion.run import second_opinions
from arvg_trt.workspace.manifest import MANIFEST, Manifest

from ...command_line import Finished, arvg
from ...docs.reader import calibrate_own, give_graphs

pytest.importorskip("polygraphy", reason="needs arvg-trt[rtx]")
from polygraphy.json import load_json

MODEL = "cosmos-mini-di8x8"


def exported(folder: Path) -> Manifest:
    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)


def image(value: float = 0.1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    return {"image": (value * random.normal(size=(1, 3, 64, 64))).astype(np.float32)}


def test_other_ways_of_running_agree_on_the_held_out_images(
    finished: Finished, workspace: Path
) -> None:
    given = ("--images", finished.validation, "--size", 64, "--rounds", 0, "--skip-engine")
    outcome = arvg("validate", workspace, *given, "--second-opinion")
    assert outcome.code == 0 and outcome.err == "", outcome
    folder = workspace / "validate" / "int8"
    report = json.loads((folder / "report.json").read_text())
    rows = report["second_opinions"]
    graphs = ("encoder", "decoder")
    assert [(row["by"], row["candidate"], row["graph"]) for row in rows] == [
        *(("polygraphy", "fp32", graph) for graph in graphs),
        *(("polygraphy", "qdq", graph) for graph in graphs),
        *(("torch", "fp32", graph) for graph in graphs),
    ]
    assert all(row["agrees"] and row["limit"] for row in rows)
    count = len(report["data"]["validation"])
    assert {row["samples"] for row in rows} == {min(4, count)}
    # The figure is the report's own, where both are over the same images.
    figures = {(f["by"], f["graph"], f["output"]): f for f in report["figure_opinions"]}
    assert len(figures) == 4
    latent = figures["polygraphy", "encoder", "latent"]
    assert count <= 4
    assert latent["theirs_db"] == pytest.approx(report["accuracy"]["qdq"]["latent_sqnr_db"])
    decoded = figures["torch", "decoder", "image"]
    wanted = report["accuracy"]["qdq"]["decoder_sqnr_db"]
    assert decoded["theirs_db"] == pytest.approx(wanted, abs=0.01)
    (left,) = report["opinions_not_run"]
    assert left.startswith("TensorRT by Polygraphy's TrtRunner: not executed")
    assert "second opinion: Polygraphy agrees on 4 of 4 graphs, 2 of 2 figures" in outcome.out
    assert "PyTorch agrees on 2 of 2 graphs, 2 of 2 figures" in outcome.out
    assert "## Second opinion" in (folder / "report.md").read_text()
    # Polygraphy's own command replays it.
    graph = workspace / "quantize" / "int8" / "decoder.onnx"
    feeds = folder / "second-opinion" / "decoder.json"
    program = Path(sys.executable).with_name("polygraphy")
    tool = [program, "run", graph, "--onnxrt", "--load-inputs", feeds]
    done = subprocess.run([str(word) for word in tool], capture_output=True, text=True)
    assert done.returncode == 0 and "PASSED" in done.stdout, done


def test_polygraphy_runs_the_graphs_of_a_user_on_their_arrays(tmp_path: Path) -> None:
    """Such arrays are mapped from the .npz, and never were written for Polygraphy."""
    give_graphs(tmp_path)
    calibrate_own(tmp_path, tmp_path / "ws")
    assert arvg("quantize", tmp_path / "ws").code == 0
    given = ("--feeds", tmp_path / "held_out.npz", "--rounds", 0, "--second-opinion")
    outcome = arvg("validate", tmp_path / "ws", *given)
    assert outcome.code == 0, outcome
    folder = tmp_path / "ws" / "validate" / "int8"
    rows = json.loads((folder / "report.json").read_text())["second_opinions"]
    assert [(row["by"], row["candidate"], row["agrees"]) for row in rows] == [
        ("polygraphy", "fp32", True),
        ("polygraphy", "qdq", True),
    ]
    runs = load_json(str(folder / "second-opinion" / "model.json"))
    held_out = np.load(tmp_path / "held_out.npz")["image"]
    for k, run in enumerate(runs):
        assert np.array_equal(run["image"], held_out[k : k + 1])


def test_outputs_of_another_session_differ(finished: Finished) -> None:
    path = finished.workspace / "quantize" / "int8" / "encoder.onnx"
    feeds = [image(), image(0.5)]
    ours = [dict(reference_session(path).run(each)) for each in feeds]
    right, theirs = compared("qdq", path, feeds, ours)
    assert right.agrees and right.samples == 2 and len(theirs) == 2
    assert right.max_error is not None and right.max_error < 1e-4
    for name in ours[0]:
        wrong = [ours[0], {**ours[1], name: ours[1][name] + 1}]  # in the second run alone
        found, _ = compared("qdq", path, feeds, wrong)
        assert not found.agrees
    odd = {**ours[0], "latent": np.full_like(ours[0]["latent"], np.nan)}
    found, _ = compared("qdq", path, feeds, [odd, ours[1]])
    assert not found.agrees and found.max_error is None


def test_without_a_checkpoint_the_report_says_so_and_polygraphy_is_asked_alone(
    finished: Finished, tmp_path: Path
) -> None:
    folders = {
        "fp32": finished.workspace / "export",
        "qdq": finished.workspace / "quantize" / "int8",
    }
    found = second_opinions(folders, {"encoder": [image()]}, tmp_path, "it is not at hand")
    assert {row.by for row in found.graphs} == {"polygraphy"}
    assert "PyTorch: it is not at hand" in found.not_run
    assert [row.by for row in found.figures] == ["polygraphy"]


def test_a_checkpoint_is_taken_by_its_digest(finished: Finished, tmp_path: Path) -> None:
    manifest = exported(finished.workspace / "export")
    recipe = load_recipe(finished.recipe)
    found = find_checkpoint(manifest, recipe)
    assert isinstance(found, FoundCheckpoint) and found.model == MODEL
    inputs = {name: "0" * 64 for name in manifest.inputs}
    other = msgspec.structs.replace(manifest, inputs=inputs)
    assert find_checkpoint(other, None) == (
        "its checkpoint is not where the workspace's recipe or the package would have it"
    )
    custom = msgspec.structs.replace(manifest, options={"model": "onnx", "graphs": ["a.onnx"]})
    assert find_checkpoint(custom, None) == "graphs of your own have no checkpoint"
    unknown = msgspec.structs.replace(manifest, options={"model": "no-such-model"})
    assert "no-such-model" in str(find_checkpoint(unknown, None))


def test_other_weights_are_seen_by_torch(finished: Finished, tmp_path: Path) -> None:
    """The last convolution of the other checkpoint is a hundredth larger than what was exported."""
    shipped = Path(shipped_checkpoint(find_model(MODEL)))
    folder, scratch = tmp_path / "checkpoint", tmp_path / "scratch"
    shutil.copytree(shipped, folder)
    scratch.mkdir()
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("decoder.conv_out.weight"))
    save_file({**tensors, name: tensors[name] * np.float32(1.01)}, file)
    codes = reference_session(finished.workspace / "export" / "encoder.onnx").run(image())
    feeds = {"decoder": [{"indices": codes["indices"]}]}
    ours = [
        dict(reference_session(finished.workspace / "export" / "decoder.onnx").run(each))
        for each in feeds["decoder"]
    ]
    for place, agrees in ((shipped, True), (folder, False)):
        (weights,) = place.glob("*.safetensors")
        outputs = run_by_torch(FoundCheckpoint(MODEL, str(place), (weights,), None), feeds, scratch)
        assert isinstance(outputs, dict)
        assert opinion_of_torch("decoder", ours, outputs["decoder"]).agrees is agrees


def test_a_checkpoint_that_does_not_load_is_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, file)
    found = run_by_torch(
        FoundCheckpoint(MODEL, str(tmp_path), (file,), None), {"encoder": [image()]}, tmp_path
    )
    assert isinstance(found, str) and found


def test_without_polygraphy_nothing_is_measured_in_vain(
    workspace: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "arvg_trt.validate.opinion.run.find_spec"
    monkeypatch.setattr(place, lambda name: None if name == "polygraphy" else find_spec(name))
    monkeypatch.setattr(TokenizerMeasurement, "run", lambda *_: pytest.fail("it is measured"))
    given = ("--images", finished.validation, "--size", 64, "--skip-engine")
    outcome = arvg("validate", workspace, *given, "--second-opinion")
    assert outcome.code != 0 and "polygraphy" in outcome.err and "rtx" in outcome.err
