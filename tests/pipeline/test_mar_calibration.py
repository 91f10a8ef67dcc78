"""A MAR can be calibrated on saved runs beside new images of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.dgc import choose_rows, first_token_features
from arvg_trt.graph.sites import load_sites
from arvg_trt.runtime.folders import read_spec
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.samples.files import GraphRun, graph_of, load_sample, sample_files, save_sample
from arvg_trt.workspace.manifest import MANIFEST
from arvg_trt.workspace.workspace import WORKSPACE_FILE

from ..command_line import arvg, assert_refused, pictures
from ..families.mar.models import SMALL
from ..families.tiny import silent


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
        (("--images", "skimage"), "without classes"),
        (("--feeds", "x.npz"), "--feeds"),
        (("--synthetic",), "--synthetic"),
    ],
)
def test_what_only_others_are_calibrated_on_is_refused(
    exported: Path, args: tuple[object, ...], words: str
) -> None:
    assert_refused(arvg("calibrate", exported, *args), 5, words)


def kept_signal(time: int) -> float:
    """alpha-bar of the cosine schedule, each beta at most 0.999."""
    at = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    return float(np.prod(1 - np.minimum(1 - at[1:] / at[:-1], 0.999)[: time + 1]))


def test_images_lead_the_trajectory(exported: Path, tmp_path: Path) -> None:
    """Known tokens are the image's own; the denoiser sees its next ones with a time's noise."""
    _, spec = read_spec(exported / "export")
    images = pictures(tmp_path / "images", 3, spec.image_size)
    outcome = arvg("calibrate", exported, "--images", images, "--labels", "2,0,1", "--samples", 3)
    assert outcome.code == 0, outcome
    samples = exported / "calibrate" / "samples"
    runs = [(graph_of(path), load_sample(path)) for path in sample_files(samples)]
    assert [graph for graph, _ in runs] == (["pass"] + ["denoise"] * 4) * 12
    tokenizer = ImageTokenizer.open(exported / "export")
    session = reference_session(exported / "export" / "pass.onnx")
    noises = []
    for number, label in enumerate((2, 0, 1)):
        pixels = np.asarray(Image.open(images / f"{number}.png"), np.float32).transpose(2, 0, 1)
        latent = tokenizer.encode(pixels[None] / 127.5 - 1)[1]
        raster = latent.reshape(SMALL.latent_channels, -1).T
        for k in range(20 * number, 20 * number + 20, 5):
            feeds = runs[k][1]
            assert feeds["labels"].tolist() == [label, SMALL.num_classes]
            order = feeds["position_ids"][0]
            assert np.array_equal(feeds["position_ids"][1], order)
            known = feeds["tokens"].shape[1]
            for row in feeds["tokens"]:
                np.testing.assert_allclose(row, raster[order[:known]], atol=1e-6)
            made = session.run(feeds, ["condition"])["condition"]
            for _, one in runs[k + 1 : k + 5]:
                condition = one["condition"].reshape(2, -1, SMALL.head_width)
                count = condition.shape[1]
                np.testing.assert_allclose(condition, made[:, :count], atol=2e-5)
                first, second = one["x"].reshape(2, count, SMALL.latent_channels)
                assert np.array_equal(first, second)
                share = kept_signal(int(one["time"][0]))
                clean = raster[order[known : known + count]]
                noises.append((first - np.sqrt(share) * clean) / np.sqrt(1 - share))
    noise = np.concatenate([n.ravel() for n in noises])
    assert len(noise) > 150
    assert abs(noise.mean()) < 4 / np.sqrt(len(noise))
    assert abs(noise.std() - 1) < 4 / np.sqrt(2 * len(noise))
    results = json.loads((exported / "calibrate" / MANIFEST).read_text())["results"]
    assert results["images"] == ["0.png", "1.png", "2.png"] and results["samples"] == 3
    assert arvg("quantize", exported, "--name", "of_images").code == 0


def test_orders_of_images_differ_and_a_shard_keeps_its_own(exported: Path, tmp_path: Path) -> None:
    _, spec = read_spec(exported / "export")
    given = ("--images", pictures(tmp_path / "i", 2, spec.image_size), "--labels", 1)
    whole = exported / "calibrate" / "samples"
    assert arvg("calibrate", exported, *given, "--samples", 2).code == 0
    all_runs = [path.read_bytes() for path in sample_files(whole)]
    orders = [load_sample(path)["position_ids"][0] for path in sample_files(whole, "pass")]
    assert not np.array_equal(orders[0], orders[4])
    assert arvg("calibrate", exported, *given, "--samples", 2, "--shard", "2/2").code == 0
    assert [path.read_bytes() for path in sample_files(whole)] == all_runs[len(all_runs) // 2 :]


def test_dgc_keeps_the_farthest_rows_of_passes_and_the_first_runs_of_the_denoiser(
    quantized_mar: Path, exported: Path, tmp_path: Path
) -> None:
    """Six images' rows are cut to three images' rows."""
    pool = quantized_mar / "calibrate" / "samples"
    given = ("--dgc", "--samples", 3, "--samples-from", quantized_mar, "--dgc-select", "distance")
    outcome = arvg("calibrate", exported, *given)
    assert outcome.code == 0, outcome
    kept = exported / "calibrate" / "samples"
    rows = [load_sample(path) for path in sample_files(kept, "pass")]
    assert len(rows) == 24 and all(len(row["labels"]) == 1 for row in rows)
    results = json.loads((exported / "calibrate" / MANIFEST).read_text())["results"]["dgc"]
    conditional = sum(int(row["labels"][0]) != SMALL.num_classes for row in rows)
    assert results["conditional_share"] == conditional / 24
    assert (results["candidates"], results["kept"]) == (48, 24)
    first = [path.read_bytes() for path in sample_files(pool, "denoise")[:48]]
    assert [path.read_bytes() for path in sample_files(kept, "denoise")] == first
    single = tmp_path / "rows"
    single.mkdir()
    for k, run in enumerate(map(load_sample, sample_files(pool, "pass"))):
        for half in range(2):
            row = {name: values[half : half + 1] for name, values in run.items()}
            save_sample(GraphRun("pass", row), single, 2 * k + half)
    sites = load_sites(exported / "export").of_graph("pass")
    features = first_token_features(
        CalibrationRun(exported / "export", single, (sites[0].graph,), 1, silent), sites
    )
    choice = choose_rows(features[::2], features[1::2], 24, "distance")
    far = np.sort(np.concatenate([2 * choice.conditional, 2 * choice.null + 1]))
    files = sample_files(single)
    assert [path.read_bytes() for path in sample_files(kept, "pass")] == [
        files[k].read_bytes() for k in far
    ]
    assert arvg("quantize", exported, "--name", "far").code == 0
