"""What a MAR can be calibrated on beside new pictures of its own: runs that were saved before."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from arvg_trt.artifacts import WORKSPACE_FILE
from arvg_trt.runtime.feeds import GraphRun, load_sample, sample_files, save_sample

from ..export.mar_models import SMALL
from .conftest import arvg, assert_refused


@pytest.fixture
def exported(quantized_mar: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "ws"
    shutil.copytree(quantized_mar / "export", copy / "export")
    shutil.copy(quantized_mar / WORKSPACE_FILE, copy)
    return copy


def test_saved_runs_give_the_same_statistics(quantized_mar: Path, exported: Path) -> None:
    outcome = arvg("calibrate", exported, "--samples-from", quantized_mar)
    assert outcome.code == 0, outcome
    was, now = (folder / "calibrate" for folder in (quantized_mar, exported))
    for name in ("samples/00000.pass.safetensors", "samples/00004.denoise.safetensors"):
        assert (was / name).read_bytes() == (now / name).read_bytes()
    wanted, found = (load_file(folder / "statistics.safetensors") for folder in (was, now))
    assert wanted.keys() == found.keys()
    for name, values in wanted.items():
        assert np.array_equal(values, found[name]), name
    assert arvg("quantize", exported, "--name", "again").code == 0


# By what is wrong: the graph of the run, what is changed of it, and what the error says.
BAD = {
    "order": (
        "pass",
        {"position_ids": np.zeros((2, SMALL.length), np.int64)},
        "no orders of the 16 tokens",
    ),
    "all known": (
        "pass",
        {"tokens": np.zeros((2, SMALL.length, SMALL.latent_channels), np.float32)},
        "all 16 tokens are known",
    ),
    "label": ("pass", {"labels": np.array([0, 6])}, "label 6, but the classes are 0 to 4"),
    "rows": ("pass", {"labels": np.array([0])}, "labels 1"),
    "nan": ("denoise", {"x": np.full((2, 4), np.nan, np.float32)}, "x has NaN or infinity"),
    "time": ("denoise", {"time": np.array([1000])}, "time 1000, but those of the diffusion"),
    "type": ("denoise", {"time": np.array([1.0], np.float32)}, "time is float32"),
    "lacking": ("denoise", {"condition": None}, "no array for denoise/condition"),
    "foreign": ("decoder", {}, "is no run of pass or denoise"),
}


@pytest.mark.parametrize("graph, changes, words", BAD.values(), ids=BAD)
def test_runs_that_do_not_fit_are_refused_by_file(
    quantized_mar: Path,
    exported: Path,
    tmp_path: Path,
    graph: str,
    changes: dict[str, np.ndarray | None],
    words: str,
) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    samples = quantized_mar / "calibrate" / "samples"
    for k, name in enumerate(("pass", "denoise")):
        save_sample(GraphRun(name, load_sample(sample_files(samples, name)[0])), folder, k)
    source = sample_files(samples, "denoise" if graph == "decoder" else graph)[0]
    changed = load_sample(source) | changes
    feeds = {name: values for name, values in changed.items() if values is not None}
    path = save_sample(GraphRun(graph, feeds), folder, 2)
    outcome = arvg("calibrate", exported, "--samples-from", folder)
    assert_refused(outcome, 5, words, str(path))


def test_runs_of_one_graph_alone_are_refused(
    quantized_mar: Path, exported: Path, tmp_path: Path
) -> None:
    samples = quantized_mar / "calibrate" / "samples"
    save_sample(GraphRun("pass", load_sample(sample_files(samples, "pass")[0])), tmp_path, 0)
    outcome = arvg("calibrate", exported, "--samples-from", tmp_path)
    assert_refused(outcome, 5, "has no run of denoise.onnx", str(tmp_path))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--images", "skimage", "--labels", 1), "along its trajectory"),
        (("--dgc",), "--dgc"),
        (("--feeds", "x.npz"), "--feeds"),
        (("--synthetic",), "--synthetic"),
    ],
)
def test_what_only_others_are_calibrated_on_is_refused(
    exported: Path, args: tuple[object, ...], words: str
) -> None:
    assert_refused(arvg("calibrate", exported, *args), 5, words)
