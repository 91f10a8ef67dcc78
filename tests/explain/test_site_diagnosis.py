"""`diagnose` names the sites that cost accuracy, and writes the plan that raises them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.graph.sites import load_sites
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.validate.measure.tokenizer_sites import measure_sites

from ..command_line import Finished, Outcome, arvg, assert_refused
from ..validate.diagnose.network import write_feeds
from ..validate.diagnose.planted import spoil


def diagnosed(workspace: Path, *options: object) -> dict:
    outcome = arvg("diagnose", workspace, "--json", *options)
    assert outcome.code == 0, outcome
    return json.loads(outcome.out)["diagnosis"]


def held_out(folder: Path) -> tuple[object, ...]:
    return ("--feeds", folder / "held.npz", "--samples", 6)


def best(found: dict) -> str:
    return max(found["sites"], key=lambda site: site["share"] or 0)["name"]


def test_the_first_sites_are_raised_and_quantize_reaches_what_was_measured(copied: Path) -> None:
    workspace = copied / "ws"
    options = ("--name", "plain", *held_out(copied), "--raise", 2, "--requantize")
    found = diagnosed(workspace, *options)
    assert found["samples_from"] == "held-out" and found["separate"]
    assert (found["ranked_on"], found["measured_on"]) == (3, 3)
    shares = [site["share"] for site in found["sites"]]
    assert sum(shares) == pytest.approx(1) and found["shares"] == {"net": pytest.approx(1)}
    first, second = found["raised"]
    assert found["held_out_db"] < first["measured_db"] < second["measured_db"]
    assert first["predicted_db"] == pytest.approx(first["measured_db"], abs=1.5)
    assert first["name"] == best(found) and first["kib"] > 0
    # By the plan, and by the patterns: one is what the other is.
    assert found["requantized_db"] > second["measured_db"] - 1
    folder = workspace / "diagnose" / "plain"
    assert {path.name for path in folder.iterdir()} == {
        *("diagnosis.json", "diagnosis.md", "diagnosis.html", "plan.json")
    }
    by_plan = ("quantize", workspace, "--name", "plan", "--smoothing", 0)
    outcome = arvg(*by_plan, "--plan", folder / "plan.json")
    assert outcome.code == 0, outcome
    again = diagnosed(workspace, "--name", "plan", *held_out(copied), "--raise", 0)
    assert again["held_out_db"] == pytest.approx(found["requantized_db"], abs=1e-6)
    assert [site["name"] for site in again["sites"]] == [
        site["name"] for site in found["sites"] if site["name"] not in found["exclude"]
    ]
    excluded = [word for name in found["exclude"] for word in ("--exclude", name)]
    bits = ("--include", "*", "--weight-bits", 6, "--activation-bits", 6)
    outcome = arvg(*by_plan[:3], "excluded", *by_plan[4:], *bits, *excluded)
    assert outcome.code == 0, outcome
    by_name = diagnosed(workspace, "--name", "excluded", *held_out(copied), "--raise", 0)
    assert by_name["held_out_db"] > found["held_out_db"] + 1


def test_eight_bits_are_predicted_and_measured_by_quantizing(copied: Path) -> None:
    options = ("--to", "8bit", "--raise", 1, "--requantize", "--rank", "gain_per_kib")
    found = diagnosed(copied / "ws", "--name", "plain", *held_out(copied), *options)
    (row,) = found["raised"]
    assert row["to"] == "8 bits" and row["measured_db"] is None and row["kib"] > 0
    assert row["predicted_db"] > found["held_out_db"]
    assert found["requantized_db"] == pytest.approx(row["predicted_db"], abs=1.5)
    assert found["exclude"] == []


@pytest.mark.parametrize(
    ("site", "constant"),
    [(s, c) for s in ("first", "second", "last") for c in ("weight_scale", "activation_scale")],
)
@pytest.mark.parametrize("factor", [24.0, 1 / 24])
def test_a_spoiled_scale_is_found(copied: Path, site: str, constant: str, factor: float) -> None:
    folder = copied / "ws" / "quantize" / "plain"
    spoil(folder, "net", f"{site}.{constant}", lambda scale: scale * factor)
    found = diagnosed(copied / "ws", "--name", "plain", *held_out(copied), "--raise", 1)
    assert best(found) == found["raised"][0]["name"] == site
    row = next(row for row in found["sites"] if row["name"] == site)
    worse = "weight_db" if constant == "weight_scale" else "input_db"
    assert row[worse] == pytest.approx(row["alone_db"], abs=3)
    assert found["raised"][0]["measured_db"] > found["held_out_db"] + 3
    odd = found["odd_scales"][0]
    assert (odd["name"], odd["scale"]) == (
        site,
        constant.removesuffix("_scale").replace("activation", "input"),
    )
    assert 0.45 < odd["factor"] * factor < 2.2 and odd["gain_db"] > 10


def test_no_scale_is_off_without_a_fault(diagnosed_network: Path, tmp_path: Path) -> None:
    for name in ("plain", "smooth", "weights"):
        output = tmp_path / name
        options = ("--name", name, *held_out(diagnosed_network), "--raise", 0, "-o", output)
        assert diagnosed(diagnosed_network / "ws", *options)["odd_scales"] == []


def test_the_first_site_that_gives_nan_is_named(copied: Path) -> None:
    def broken(scale: NDArray) -> NDArray:
        return np.full_like(scale, np.nan)

    folder = copied / "ws" / "quantize" / "plain"
    spoil(folder, "net", "second.channel_factor", broken)
    found = diagnosed(copied / "ws", "--name", "plain", *held_out(copied))
    assert found["first_not_finite"] == "second" == found["raised"][0]["name"]
    finite = {site["name"]: site["finite"] for site in found["sites"]}
    assert finite == {"first": True, "second": False, "last": True}  # the ReLU makes 0 of NaN
    assert found["raised"][0]["measured_db"] > found["held_out_db"] + 3
    outcome = arvg("diagnose", copied / "ws", "--name", "plain", *held_out(copied))
    assert "NaN or infinity: first at second" in outcome.out


def test_without_held_out_samples_the_calibration_s_are_named(diagnosed_network: Path) -> None:
    folder = diagnosed_network / "out"
    outcome = arvg("diagnose", diagnosed_network / "ws", "--name", "plain", "-o", folder)
    assert outcome.code == 0, outcome
    assert "calibration samples" in outcome.err and "--feeds" in outcome.err
    said, first = outcome.out.splitlines()[:2]
    assert said == (
        "ranked on 2 of 6 calibration samples, measured on 2 (the first 4 were taken: --samples "
        "takes more)"
    )
    assert first.startswith("SQNR to FP32: ") and "Most of the error comes from site " in first
    page = (folder / "diagnosis.md").read_text()
    assert "Warning: Measured on calibration samples" in page and "## Raise these sites" in page


def test_all_samples_that_are_given_are_measured_on(copied: Path) -> None:
    write_feeds(copied / "held.npz", 1, 12)
    command = ("diagnose", copied / "ws", "--name", "plain", "--raise", 1)
    feeds = ("--feeds", copied / "held.npz")
    outcome = arvg(*command, *feeds)
    assert outcome.out.splitlines()[0] == "ranked on 6 of 12 samples, measured on 6", outcome
    few = arvg(*command, *feeds, "--samples", 5, "-o", copied / "few").out.splitlines()[0]
    assert few.startswith("ranked on 3 of 12 samples, measured on 2 (the first 5 were taken")
    more = arvg(*command, *feeds, "--samples", 32, "-o", copied / "more")
    assert_refused(more, 5, "holds 12 samples, 32 were asked for", "--samples 12")
    own = arvg(*command, "--samples", 32, "-o", copied / "own")
    assert_refused(own, 5, "holds 6 samples, 32 were asked for", "--samples 6")
    write_feeds(copied / "held.npz", 1, 40)
    most = arvg(*command, *feeds, "-o", copied / "most").out.splitlines()[0]
    assert most.startswith("ranked on 16 of 40 samples, measured on 16 (the first 32 were taken")


def test_help_says_what_samples_are_here(copied: Path) -> None:
    text = " ".join(arvg("diagnose", "sites", "--help").out.split())
    assert "all images or arrays that are given, at most 32; else 4, which a generator" in text
    assert "Images that a generator makes." not in text


def refused(folder: Path, *options: object) -> Outcome:
    return arvg("diagnose", folder / "ws", *options, *held_out(folder))


def test_bad_input_is_refused(copied: Path) -> None:
    assert_refused(refused(copied, "--name", "plain", "--site", "frist"), 3, "frist", "first")
    assert_refused(refused(copied, "--name", "none"), 9, "quantize", "first")
    assert_refused(arvg("diagnose", copied / "nothing"), 9, "is no workspace", "export")
    outcome = arvg("diagnose", copied / "ws", "--name", "plain", "--feeds", copied / "none.npz")
    assert_refused(outcome, 5, "none.npz")
    quantized = copied / "ws" / "quantize"
    (quantized / "plain" / "plan.json").write_text('{"schema": "arvg-trt/plan/v1", "sites": [')
    assert_refused(refused(copied, "--name", "plain"), 9, "plan.json")
    shutil.copytree(quantized / "smooth", quantized / "copy")
    (quantized / "copy" / "net.onnx").write_bytes(b"")
    assert_refused(refused(copied, "--name", "copy"), 9, "net.onnx")
    assert not (copied / "ws" / "diagnose").exists()


def test_a_quantization_of_another_export_is_refused(copied: Path) -> None:
    export = copied / "ws" / "export"
    spoil(export, "net", "first.weight", lambda weight: weight * 2)
    assert_refused(refused(copied, "--name", "plain"), 9, "export")


def test_json_has_the_error_too(copied: Path) -> None:
    outcome = arvg("diagnose", copied / "ws", "--name", "plain", "--site", "x", "--json")
    assert outcome.code == 3 and "matches no site" in json.loads(outcome.out)["error"]["message"]


def test_a_tokenizer_has_the_figures_of_its_report(finished: Finished, tmp_path: Path) -> None:
    """Validation measures the same sites in order, in a way of its own."""
    images = ("--images", finished.validation, "--size", 64)
    found = diagnosed(
        finished.workspace,
        *images,
        "--raise",
        0,
        "--site",
        "decoder.up.0.block.2.*",
        "-o",
        tmp_path / "out",
    )
    assert set(found["graphs"]) == {"encoder", "decoder"}
    sites = load_sites(finished.workspace / "export")
    from PIL import Image

    from arvg_trt.runtime.images import center_crop, to_model

    picture = np.asarray(Image.open(next(finished.validation.iterdir())).convert("RGB"))
    image = to_model(center_crop(picture, 64))
    folders = finished.workspace / "export", finished.workspace / "quantize" / "int8"
    wanted = measure_sites(*folders, [image], lambda done, count: None).decibels()
    own = {site["name"]: site["accumulated_db"] for site in found["sites"]}
    assert len(sites.sites) > len(own) > 10
    for name, value in wanted.items():
        assert own[name] == pytest.approx(value, abs=1e-3)


def test_a_spoiled_convolution_is_found(workspace: Path, finished: Finished) -> None:
    folder = workspace / "quantize" / "int8"
    (workspace / "run.toml").unlink(missing_ok=True)
    site = "decoder.up.0.block.1.conv1"
    spoil(folder, "decoder", f"{site}.activation_scale", lambda scale: scale * 30)
    images = ("--images", finished.validation, "--size", 64)
    found = diagnosed(workspace, *images, "--raise", 1, "--site", "decoder.up.0.block.*")
    assert best(found) == site == found["raised"][0]["name"]


def test_a_mar_is_diagnosed_along_its_trajectory(quantized_mar: Path, tmp_path: Path) -> None:
    options = (
        "--name",
        "w6a6",
        "--samples",
        3,
        "--labels",
        "0-2",
        "--raise",
        8,
        "--site",
        "enc*",
    )
    found = diagnosed(quantized_mar, *options, "-o", tmp_path / "out")
    assert list(found["graphs"]) == ["pass"] and not found["unmeasured"]
    with_ranges = [site for site in found["sites"] if site["ranges"]]
    assert with_ranges and all(
        name.startswith(("position", "step")) for site in with_ranges for name in site["ranges"]
    )
    assert found["raised"][0]["measured_db"] > found["held_out_db"]


def test_a_folder_that_is_there_is_not_written_over(
    diagnosed_network: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "reports" / "mine.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    options = ("--name", "plain", *held_out(diagnosed_network), "-o", kept.parent)
    outcome = arvg("diagnose", diagnosed_network / "ws", *options)
    assert_refused(outcome, 9, "is there already", "name a new folder")
    assert kept.read_text() == "mine"


def test_the_engine_is_measured_beside_its_graph_on_the_same_samples(copied: Path) -> None:
    """The oracle runs the user's file and the engine in sessions of its own."""
    workspace = copied / "ws"
    before = diagnosed(workspace, "--name", "plain", *held_out(copied), "--raise", 0)
    assert "engine_db" not in before
    outcome = arvg("build", workspace, "--name", "plain")
    assert outcome.code == 0, outcome
    shutil.rmtree(workspace / "diagnose")
    command = ("diagnose", workspace, "--name", "plain", *held_out(copied), "--raise", 0)
    outcome = arvg(*command)
    folder = workspace / "diagnose" / "plain"
    found = json.loads((folder / "diagnosis.json").read_text())
    assert found["held_out_db"] == pytest.approx(before["held_out_db"])
    files = (workspace / "export" / "net.onnx", workspace / "engines/plain/onnxruntime/net.onnx")
    exact, own = (
        np.concatenate([reference_session(path).run({"x": x})["y"] for x in samples_of(copied)[3:]])
        for path in files
    )
    noise = np.square(exact - own).sum() / np.square(exact).sum()
    assert found["engine_db"] == pytest.approx(-10 * np.log10(noise), abs=0.2)
    line = (
        "figures are of the Q/DQ graph, which an engine for a GPU computes; ONNX Runtime's engine"
    )
    assert line in outcome.out and line[1:] in (folder / "diagnosis.md").read_text()


def samples_of(folder: Path) -> list[NDArray[np.float32]]:
    with np.load(folder / "held.npz") as file:
        return [x[None] for x in file["x"]]
