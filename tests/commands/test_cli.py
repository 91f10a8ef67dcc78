"""The commands as users run them: help, recipes, codec, inspection, comparison."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from arvg_trt.cli import cli
from arvg_trt.commands.support.options import Bytes
from arvg_trt.errors import WorkspaceError
from arvg_trt.families.variants import all_variants
from arvg_trt.numerics.packing import load_packed_weights, save_packed_weights
from arvg_trt.runtime.images import load_image, save_image
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.workspace.files import own_folder, user_cache
from arvg_trt.workspace.stage import tool_version

from ..command_line import (
    MODEL,
    Finished,
    arvg,
    assert_refused,
    commands,
    digests,
    leftovers,
    start,
    wait_for,
)

STAGES = ("export", "calibrate", "quantize", "build", "validate")


def stage_states(out: str) -> dict[str, bool]:
    """Stage name to whether it was up to date, from what `run` prints."""
    lines = [line.split() for line in out.splitlines()]
    return {words[0]: words[1:4] == ["up", "to", "date"] for words in lines if words[0] in STAGES}


def test_version_is_printed() -> None:
    outcome = arvg("--version")
    assert (outcome.code, outcome.out) == (0, f"arvg-trt, version {tool_version()}\n")


@pytest.mark.parametrize("command", commands())
def test_help_of_every_command_has_an_example_of_it(command: str) -> None:
    for flag in ("--help", "-h"):
        outcome = arvg(*command.split(), flag)
        assert outcome.code == 0
        assert f"Example: arvg-trt {command} " in outcome.out.replace("\n", " ")


def test_help_lists_every_command() -> None:
    out = arvg("--help").out
    for command in cli.commands:
        assert f"\n  {command} " in out


def test_lists_of_commands_hold_whole_sentences() -> None:
    groups = [name for name, each in cli.commands.items() if isinstance(each, click.Group)]
    for words in ((), *((name,) for name in groups)):
        out = arvg(*words, "--help").out
        assert "..." not in out.replace("RECIPES...", "").partition("Options:")[2], words


def test_unknown_command_is_a_usage_error() -> None:
    outcome = arvg("quantise")
    assert outcome.code == 2
    assert "quantise" in outcome.err


def test_models_lists_every_variant() -> None:
    head, *lines = arvg("models").out.splitlines()
    assert head.split()[:3] == ["model", "parameters", "weights:"]
    assert [line.split()[0] for line in lines] == [entry.name for entry in all_variants()]
    rows = json.loads(arvg("models", "--json").out)["models"]
    assert {row["name"]: row["parameters"] for row in rows}[MODEL] == 3_036_214


def test_doctor_says_the_same_in_text_and_json() -> None:
    text, as_json = arvg("doctor"), arvg("doctor", "--json")
    assert text.code == as_json.code == 0
    assert text.err == as_json.err == ""
    checks = json.loads(as_json.out)["checks"]
    lines = text.out.splitlines()
    second = lines.index("To build from a bundle, on the device:")
    third = lines.index("To run engines and bundles:")
    assert lines[0].startswith("To export, quantize, validate and build:")
    blocks = {
        "build": lines[1:second],
        "kit": lines[second + 1 : third],
        "run": lines[third + 1 :],
    }
    for use, block in blocks.items():
        assert [line.split()[0] for line in block] == [
            c["state"] for c in checks if c["use"] == use
        ]
        assert all(line.startswith("  ") for line in block)
    runs = {c["what"] for c in checks if c["use"] == "run"}
    assert {"python", "GPU", "required keys"} <= runs and not runs & {"torch", "tensorrt_rtx"}
    assert {"python", "torch", "tensorrt_rtx", "GPU"} <= {c["what"] for c in checks}


def test_looking_commands_do_not_import_torch() -> None:
    code = (
        "import sys; from arvg_trt.cli import cli\n"
        "cli(['doctor', '--json'], standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_run_prints_its_stages_the_main_figures_and_the_report(finished: Finished) -> None:
    out = finished.outcome.out
    assert stage_states(out) == dict.fromkeys(STAGES, False)
    lines = out.splitlines()
    *_, gate, report = lines
    (figures,) = (line for line in lines if line.startswith("PSNR drop"))
    (download,) = (line for line in lines if line.startswith("packed download"))
    assert re.fullmatch(r"gate compression>=3: passed \([3-9]\.\d+\)", gate)
    assert "PSNR drop" in figures and "smaller on disk" in figures
    assert download.startswith("packed download (`bundle --packed`) ")
    assert "quantized weights alone" in download
    assert Path(report).is_file()
    (said,) = (k for k, line in enumerate(lines) if " sites quantized" in line)
    assert lines[said : lines.index(figures)] == expected_lines(finished.workspace)
    assert finished.outcome.err == ""
    assert not leftovers(finished.workspace)


def expected_lines(workspace: Path) -> list[str]:
    """Return the lines on the sites of a quantization, by its manifest."""
    results = json.loads((workspace / "quantize/int8/manifest.json").read_text())["results"]
    sites = results["sites"]
    kept = Counter(row["reason"] for row in sites if not row["weight"].startswith("INT"))
    assert len(kept) > 1
    only = sum(row["weight"].startswith("INT") and row["activation"] == "float" for row in sites)
    megabytes = [f"{results[key] / 1e6:.2f}" for key in ("packed_bytes", "fp32_bytes")]
    return [
        f"{len(sites) - kept.total()} of {len(sites)} sites quantized, {only} of them in their "
        f"weights alone; their graphs' weights take {megabytes[0]} MB packed, {megabytes[1]} MB in "
        "FP32",
        *(f"  {count} in high precision: {reason}" for reason, count in kept.most_common()),
    ]


def test_quantize_says_how_many_sites_it_quantized_and_why_not_the_others(
    finished: Finished,
) -> None:
    command = ("quantize", finished.workspace, "--recipe", finished.recipe)
    first, *rest = arvg(*command).out.splitlines()
    assert first.startswith("quantize: up to date, ")
    assert rest == expected_lines(finished.workspace)
    for each in (command, ("run", finished.recipe)):
        sites = json.loads(arvg(*each, "--json").out)["sites"]
        assert rest[0].startswith(f"{sites['quantized']} of {sites['of']} sites quantized")
        assert sites["of"] - sites["quantized"] == sum(sites["high_precision"].values())
        assert [
            f"  {n} in high precision: {why}" for why, n in sites["high_precision"].items()
        ] == (rest[1:])


def test_a_failed_gate_leaves_the_count_of_sites_too(finished: Finished, tmp_path: Path) -> None:
    recipe = tmp_path / "strict.toml"
    recipe.write_text(finished.recipe.read_text().replace("compression>=3", "compression>=100"))
    workspace = tmp_path / "ws"
    shutil.copytree(finished.workspace, workspace)
    outcome = arvg("run", recipe, "--workspace", workspace)
    assert outcome.code == 8 and outcome.err.count("\n") == 1
    assert "\n".join(expected_lines(workspace)) in outcome.out
    found = json.loads(arvg("run", recipe, "--workspace", workspace, "--json").out)
    assert found["sites"]["quantized"] > 0 and found["error"]["exit_code"] == 8
    assert [stage["manifest"]["stage"] for stage in found["stages"]] == list(STAGES)


def test_second_run_is_up_to_date_and_changes_no_byte(finished: Finished) -> None:
    before = digests(finished.workspace)
    outcome = arvg("run", finished.recipe)
    assert outcome.code == 0
    assert stage_states(outcome.out) == dict.fromkeys(STAGES, True)
    assert digests(finished.workspace) == before


def test_packed_weights_are_the_same_bytes_every_time(workspace: Path) -> None:
    weights = workspace / "quantize" / "int8" / "weights.safetensors"
    tensors, floats = load_packed_weights(weights)
    copies = [workspace / f"{k}.safetensors" for k in range(8)]
    for copy in copies:
        save_packed_weights(tensors, floats, copy)
    assert {copy.read_bytes() for copy in copies} == {weights.read_bytes()}


def test_run_in_another_place_gives_the_same_bytes(workspace: Path, finished: Finished) -> None:
    folders = ("calibrate", "quantize", "engines")
    for name in folders:
        shutil.rmtree(workspace / name)
    outcome = arvg("run", finished.recipe, "--workspace", workspace)
    assert outcome.code == 0, outcome.err
    assert stage_states(outcome.out) == {
        "export": True,
        "calibrate": False,
        "quantize": False,
        "build": False,
        "validate": True,
    }
    for name in folders:
        made, wanted = digests(workspace / name), digests(finished.workspace / name)
        if name == "engines":  # its manifest records the seconds of the build
            for found in (made, wanted):
                found.pop("int8/onnxruntime/manifest.json")
        assert made == wanted


def test_no_file_of_a_workspace_names_the_place_it_was_made_in(finished: Finished) -> None:
    for path in finished.workspace.rglob("*"):
        if path.is_file():
            assert str(finished.root).encode() not in path.read_bytes(), path


def test_changed_quantization_repeats_only_what_follows_it(
    workspace: Path, finished: Finished, tmp_path: Path
) -> None:
    recipe = tmp_path / "changed.toml"
    recipe.write_text(finished.recipe.read_text() + "\n[quantize]\nsmoothing = 0.3\n")
    before = digests(workspace / "calibrate"), digests(workspace / "export")
    outcome = arvg("run", recipe, "--workspace", workspace)
    assert outcome.code == 0, outcome.err
    states = stage_states(outcome.out)
    assert [stage for stage, skipped in states.items() if skipped] == ["export", "calibrate"]
    assert (digests(workspace / "calibrate"), digests(workspace / "export")) == before


def test_changed_gate_repeats_only_the_validation(
    workspace: Path, finished: Finished, tmp_path: Path
) -> None:
    recipe = tmp_path / "changed.toml"
    recipe.write_text(finished.recipe.read_text().replace("compression>=3", "compression>=2"))
    states = stage_states(arvg("run", recipe, "--workspace", workspace).out)
    assert [stage for stage, skipped in states.items() if not skipped] == ["validate"]


def test_other_validation_images_repeat_only_the_validation(
    workspace: Path, finished: Finished, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.open(finished.validation / "astronaut.png").rotate(90).save(other / "turned.png")
    recipe = tmp_path / "changed.toml"
    text = finished.recipe.read_text()
    assert str(finished.validation) in text
    recipe.write_text(text.replace(str(finished.validation), str(other)))
    states = stage_states(arvg("run", recipe, "--workspace", workspace).out)
    assert [stage for stage, skipped in states.items() if not skipped] == ["validate"]


def test_weight_only_method_needs_no_activation_bits(workspace: Path) -> None:
    options = ("--quantize-method", "per_tensor", "--encoder-bits", 8, "--decoder-bits", 6)
    outcome = arvg("quantize", workspace, "--name", "seeds", *options, "--json")
    assert outcome.code == 0, outcome.err
    (stage,) = json.loads(outcome.out)["stages"]
    assert stage["manifest"]["options"]["activation_bits"] == 32
    assert {site["activation"] for site in stage["manifest"]["results"]["sites"]} == {"float"}


def test_files_of_a_workspace_can_be_read_by_others(finished: Finished) -> None:
    for path in finished.workspace.rglob("*"):
        if path.is_file() and path.name != ".lock":
            assert path.stat().st_mode & 0o777 == 0o644, path
        if path.is_dir() and path.parent != finished.workspace:
            assert path.stat().st_mode & 0o755 == 0o755, path


def test_encode_and_decode_print_one_object(finished: Finished, tmp_path: Path) -> None:
    graphs, tokens = finished.workspace / "export", tmp_path / "t.npz"
    image = finished.validation / "astronaut.png"
    outcome = arvg("encode", graphs, image, "-o", tokens, "--json")
    said = {"images": [str(image)], "written": [str(tokens)], "chosen": None}
    assert json.loads(outcome.out) == said
    outcome = arvg("decode", graphs, tokens, "-o", tmp_path / "out", "--json")
    assert json.loads(outcome.out) == {
        "written": [str(tmp_path / "out" / "astronaut.png")],
        "chosen": None,
    }


def test_decode_keeps_names_and_replaces_nothing_unasked(
    finished: Finished, odd_image: Path, tmp_path: Path
) -> None:
    graphs, tokens = finished.workspace / "export", tmp_path / "t.npz"
    names = ("photo.jpg", "PHOTO.png", "a.b.jpg")
    for name in names:
        save_image(load_image(odd_image), tmp_path / name)
    arvg("encode", graphs, *(tmp_path / name for name in names), "-o", tokens)
    out = tmp_path / "out"
    decoded = arvg("decode", graphs, tokens, "-o", out)
    written = ["photo.png", "PHOTO_1.png", "a.b.png"]  # on some disks the second is the first
    assert decoded.out.splitlines() == [str(out / name) for name in written]

    (out / "photo.png").unlink()
    (out / "PHOTO_1.png").write_text("mine")
    again = ("decode", graphs, tokens, "-o", out)
    assert_refused(arvg(*again), 9, "PHOTO_1.png: is there already", "--force")
    assert (out / "PHOTO_1.png").read_text() == "mine" and not (out / "photo.png").exists()
    assert arvg(*again, "--force").code == 0
    assert load_image(out / "PHOTO_1.png").shape == (37, 53, 3)


@pytest.mark.parametrize(
    "name", ["../up.jpg", "/etc/x.jpg", ".hidden", "con.png", "a\x1bb.png", ""]
)
def test_names_that_lead_elsewhere_are_numbers(
    name: str, finished: Finished, odd_image: Path, tmp_path: Path
) -> None:
    graphs, tokens, out = finished.workspace / "export", tmp_path / "t.npz", tmp_path / "out"
    arvg("encode", graphs, odd_image, "-o", tokens)
    with np.load(tokens) as file:
        arrays = dict(file)
    for key in ({"name_0": np.frombuffer(name.encode(), np.uint8)}, {"name_0": np.zeros((2, 2))}):
        np.savez(tokens, **(arrays | key))
        decoded = arvg("decode", graphs, tokens, "-o", out, "--force")
        assert decoded.out.splitlines() == [str(out / "0.png")], decoded
    del arrays["name_0"]  # as files before it have it
    np.savez(tokens, **arrays)
    assert arvg("decode", graphs, tokens, "-o", tmp_path / "old").code == 0
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["0.png"]


def test_tokenizer_is_opened_by_a_text_too(finished: Finished) -> None:
    assert ImageTokenizer.open(str(finished.workspace)).stride == 8
    assert ImageTokenizer.reference(str(finished.workspace / "export")).stride == 8


def test_run_as_json_prints_one_object(finished: Finished) -> None:
    outcome = arvg("run", finished.recipe, "--json")
    stages = json.loads(outcome.out)["stages"]
    assert [s["manifest"]["stage"] for s in stages] == list(STAGES)
    assert all(s["skipped"] for s in stages)
    assert outcome.err == ""


def test_stage_as_json_prints_one_object_and_no_progress(workspace: Path) -> None:
    outcome = wait_for(start("quantize", workspace, "--smoothing", 0.2, "--json"))
    (stage,) = json.loads(outcome.out)["stages"]
    assert stage["manifest"]["options"]["smoothing"] == 0.2
    assert stage["skipped"] is False
    assert outcome.err == ""


def test_recipe_serves_single_stages_too(workspace: Path, finished: Finished) -> None:
    for stage in ("calibrate", "quantize", "build", "validate"):
        outcome = arvg(stage, workspace, "--recipe", finished.recipe)
        assert outcome.code == 0, outcome.err
        assert outcome.out.startswith(f"{stage}: up to date")


def test_failed_gate_exits_with_8_and_writes_the_report(
    workspace: Path, finished: Finished
) -> None:
    options = ("--images", finished.validation, "--size", 64, "--rounds", 0)
    gates = ("--gate", "compression>=1000", "--gate", "compression>=1")
    folder = workspace / "validate" / "int8"
    for _ in range(2):
        outcome = arvg("validate", workspace, *options, *gates)
        assert outcome.code == 8
        assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
        assert "compression>=1000" in outcome.err
        assert "compression>=1 " not in outcome.err
        assert str(folder / "report.html") in outcome.err
    report = json.loads((folder / "report.json").read_text())
    passed = {gate["expression"]: gate["passed"] for gate in report["gates"]}
    assert passed == {"compression>=1000": False, "compression>=1": True}
    for name in ("report.html", "report.md", "junit.xml"):
        assert "compression" in (folder / name).read_text()


def test_images_that_calibrated_are_warned_of_when_they_validate(
    workspace: Path, finished: Finished
) -> None:
    options = ("--images", finished.calibration, "--size", 64, "--rounds", 0)
    outcome = arvg("validate", workspace, *options)
    assert outcome.code == 0
    assert outcome.err == "warning: validated on calibration images: coffee.png, rocket.png\n"


@pytest.fixture
def odd_image(tmp_path: Path, finished: Finished) -> Path:
    photo = Image.open(finished.validation / "astronaut.png")
    path = tmp_path / "odd.png"
    photo.crop((0, 0, 53, 37)).save(path)
    return path


@pytest.mark.parametrize("folder", ["export", "quantize/int8", "engines/int8/onnxruntime"])
def test_odd_image_comes_back_in_its_size(
    folder: str, odd_image: Path, finished: Finished, tmp_path: Path
) -> None:
    graphs, tokens, pictures = finished.workspace / folder, tmp_path / "t.npz", tmp_path / "out"
    encoded = arvg("encode", graphs, odd_image, odd_image, "-o", tokens)
    assert (encoded.code, encoded.out) == (0, f"{tokens}\n")
    decoded = arvg("decode", graphs, tokens, "-o", pictures)
    assert decoded.out.splitlines() == [str(pictures / "odd.png"), str(pictures / "odd_1.png")]

    with np.load(tokens) as file:
        assert file["tokens_0"].shape == (1, 5, 7)
        assert file["tokens_0"].dtype == np.int32
        np.testing.assert_array_equal(file["tokens_0"], file["tokens_1"])
    original, found = (np.asarray(Image.open(p)) for p in (odd_image, pictures / "odd.png"))
    assert found.shape == original.shape == (37, 53, 3)
    np.testing.assert_array_equal(found, ImageTokenizer.open(graphs).round_trip(original))
    # The tokenizer is lossy; a shifted or flipped picture would be much further away.
    error = np.abs(found.astype(float) - original).mean()
    assert error < np.abs(found[:, ::-1].astype(float) - original).mean() / 2


def test_inspect_tells_workspace_stage_and_graph_apart(finished: Finished) -> None:
    found = json.loads(arvg("inspect", finished.workspace, "--json").out)
    assert (found["kind"], found["model"]) == ("workspace", MODEL)
    assert found["stages"] == [
        "calibrate",
        "engines/int8/onnxruntime",
        "export",
        "quantize/int8",
        "validate/int8",
    ]
    for stage in found["stages"]:
        rows = json.loads(arvg("inspect", finished.workspace / stage, "--json").out)
        name = stage.split("/")[0].replace("engines", "build")
        assert rows["kind"] == f"output of {name}"
        assert rows["files"]
    graph = finished.workspace / "quantize" / "int8" / "encoder.onnx"
    text = arvg("inspect", graph).out
    assert text.startswith("kind: ONNX graph\n")
    assert "image [batch, 3, " in text
    assert re.search(r"^nodes: .*\bQuantizeLinear \d+", text, re.MULTILINE)
    text = arvg("inspect", graph.parent).out
    assert "\n  encoder_bits: 8\n" in text
    assert re.search(r"^  encoder\.onnx: [\d,.]+ (B|kB|MB)$", text, re.MULTILINE)
    for said in (text, arvg("inspect", finished.workspace).out):
        assert not re.search(r"[{(']", said), said  # no Python values as they are printed
    rows = json.loads(arvg("inspect", graph, "--json").out)
    assert rows["nodes"]["QuantizeLinear"] > 0
    assert rows["metadata"]["arvg_trt.model"] == MODEL


def test_targets_lists_gpus_and_says_all_of_one() -> None:
    head, *lines, note = (line.strip() for line in arvg("targets").out.splitlines())
    assert head.split() == ["names", "target", "formats", "built", "by"]
    (line,) = (line for line in lines if line.startswith("t4 "))
    assert "sm75" in line and "int8 (W8A8 linears)" in line and "tensorrt_rtx" in line
    (orin,) = (line for line in lines if line.startswith("orin "))
    assert "tensorrt 10" in orin and "tensorrt_rtx" not in orin
    text = arvg("targets", "RTX 4090").out
    assert "dense INT8: 660.6 TOPS" in text
    assert "sources:\n  https://developer.nvidia.com/cuda-gpus (2026-" in text
    (row,) = json.loads(arvg("targets", "sm89", "--json").out)["targets"]
    assert row["gpu"] is None and row["capability"]["number"] == 89
    assert len(json.loads(arvg("targets", "--json").out)["targets"]) == len(lines)
    assert note == "* compiles; no provider of ONNX Runtime opens it"
    assert {line.split(" sm")[1].split()[0] for line in lines if "rtx*" in line} == {"75", "80"}
    assert f"tensorrt_rtx: {note[2:]}" in arvg("targets", "t4").out
    assert "tensorrt_rtx: yes" in text
    assert_refused(arvg("targets", "rtx409"), 6, "unknown target", "rtx4090")


def test_inspect_tells_the_builder_of_an_engine(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    from onnx import TensorProto, helper, save

    from arvg_trt.engines.tensorrt.process import compile_engine
    from arvg_trt.engines.tensorrt.targets import resolve_target

    tensor = ("x", "y")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in tensor]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 21)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "g.onnx")
    engine = tmp_path / "g.engine"
    targets = [resolve_target("sm86", "tensorrt_rtx")]
    compile_engine(
        tmp_path / "g.onnx", engine, backend="tensorrt_rtx", targets=targets, profiles={}
    )
    rows = json.loads(arvg("inspect", engine, "--json").out)
    assert rows["kind"] == "TensorRT engine"
    assert rows["bytes"] == engine.stat().st_size
    assert trt.__version__.startswith(rows["builder"])


def test_comparison_of_a_report_with_itself_finds_no_regression(
    finished: Finished, tmp_path: Path
) -> None:
    report = finished.workspace / "validate" / "int8"
    outcome = arvg("compare", report, report / "report.json", "--html", tmp_path / "c.html")
    assert outcome.code == 0, outcome.err
    assert "PSNR drop from FP32" in outcome.out
    assert "<html" in (tmp_path / "c.html").read_text()
    workspace = arvg("compare", finished.workspace, report)
    assert_refused(workspace, 9, "is a workspace, not a report", f"name {report}")
    found = json.loads(arvg("compare", report, report, "--json").out)
    assert found["regressed"] is False
    verdicts = {row["metric"]: row["cells"][1]["verdict"] for row in found["rows"]}
    assert verdicts["psnr_drop"] == "same"


def test_comparison_with_two_bit_weights_exits_with_8(workspace: Path, finished: Finished) -> None:
    coarse = ("--encoder-bits", 2, "--decoder-bits", 2, "--activation-bits", 32)
    assert arvg("quantize", workspace, "--name", "coarse", *coarse).code == 0
    one = ("--images", finished.validation, "--size", 64, "--rounds", 0)
    assert arvg("validate", workspace, "--name", "coarse", *one).code == 0
    reports = [workspace / "validate" / name for name in ("int8", "coarse")]
    alone = arvg("compare", *reports)
    assert alone.code == 0 and "1 sample: an interval needs 2 or more" in alone.out
    options = ("--images", "skimage:astronaut,chelsea,rocket", *one[2:], "--skip-engine")
    for name in ("int8", "coarse"):
        assert arvg("validate", workspace, "--name", name, *options).code == 0
    outcome = arvg("compare", *reports)
    assert outcome.code == 8
    assert "PSNR drop from FP32" in outcome.out
    assert outcome.err.startswith("error: worse than ") and "psnr_drop" in outcome.err
    found = json.loads(arvg("compare", *reports, "--json").out)
    assert found["regressed"] is True and found["error"]["exit_code"] == 8
    verdicts = {row["metric"]: row["cells"][1]["verdict"] for row in found["rows"]}
    assert verdicts["psnr_drop"] == "worse"


@pytest.mark.parametrize(
    ("text", "size"),
    [("800000000", 8 * 10**8), ("800MB", 8 * 10**8), ("2GiB", 2**31), ("1.5 GiB", 3 * 2**29)],
)
def test_bytes_are_read_with_their_suffix(text: str, size: int) -> None:
    assert Bytes().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "0", "GiB", "-1GB", "2 gigabytes", "1e9", "3KB", "7B7"])
def test_what_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no number of bytes"):
        Bytes().convert(text, None, None)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ARVG_TRT_CACHE", "file", "file: is not a folder (set ARVG_TRT_CACHE"),
        ("ARVG_TRT_CACHE", "file/cache", "file: is not a folder (set ARVG_TRT_CACHE"),
        ("HOME", "file/me", "file: is not a folder (set ARVG_TRT_CACHE"),
        ("HOME", "nowhere", "nowhere: is a link to gone, where nothing is (set ARVG_TRT_CACHE"),
    ],
)
def test_a_cache_that_cannot_be_says_what_to_set(
    variable: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    for name in ("ARVG_TRT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / value))
    for options in ((), ("--clear",)):
        assert_refused(arvg("cache", *options), 9, words)
    checks = json.loads(arvg("doctor", "--json").out)["checks"]
    (row,) = (check for check in checks if check["what"] == "cache")
    assert row["state"] == "problem" and words in row["detail"]
    with pytest.raises(WorkspaceError, match="set ARVG_TRT_CACHE"):
        own_folder(user_cache() / "bundles")


def test_a_bundle_that_is_not_there_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("verify", "b.tar"), ("unpack", "b.tar", "-o", "new")):
        named = "b.tar: no such file (name a file that `arvg-trt bundle` wrote)"
        assert_refused(arvg(*words), 9, named)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("recommend", "ws"), "Missing option '--gate'. What it has to reach"),
        (("recommend", "ws"), "For example: arvg-trt recommend "),
        (("analyze",), "For example: arvg-trt analyze model.onnx --target rtx4090"),
        (("decode", "ws", "t.npz"), "A folder. For example: arvg-trt decode "),
    ],
)
def test_what_is_missing_is_said_with_an_example(words: tuple[str, ...], said: str) -> None:
    outcome = arvg(*words)
    assert outcome.code == 2 and said in " ".join(outcome.err.split()), outcome


def test_what_to_name_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("folder").mkdir()
    assert_refused(arvg("inspect", "gone"), 9, "no such file or folder (name a workspace")
    assert_refused(arvg("inspect", "file"), 9, "nothing that arvg-trt writes (name a workspace")
    outcome = arvg("analyze", "folder")
    assert outcome.code == 4 and "folder: refused: is a folder: name the ONNX" in outcome.out
    assert_refused(arvg("targets", "nope"), 6, "unknown target (nearest", "all: arvg-trt targets")
    assert "A16: inputs in high precision" in arvg("recipes").out


def test_diagnose_says_how_to_go_on(finished: Finished, workspace: Path) -> None:
    options = ("--images", finished.validation, "--size", 64, "--samples", 1, "--raise", 1)
    outcome = arvg("diagnose", workspace, *options)
    assert outcome.code == 0, outcome
    folder = workspace / "diagnose" / "int8"
    assert outcome.out.splitlines()[-2] == str(folder)
    assert outcome.out.splitlines()[-1] == (
        f"with this site raised: arvg-trt quantize {workspace} --name raised --plan "
        f"{folder / 'plan.json'}"
    )


def test_why_says_which_recipes_and_names_there_are(workspace: Path) -> None:
    outcome = arvg("why", "quantize", workspace, "--recipe", "var-w8a8")
    assert_refused(outcome, 3, "var-w8a8: is for var models, and ", f"holds {MODEL}", "cosmos")
    outcome = arvg("why", "quantize", workspace, "--name", "absent")
    assert outcome.code == 0 and "no quantization absent is here; --name takes" in outcome.out
    assert outcome.out.rstrip().endswith("int8")
