"""Stale, changed and substituted folders are refused by every command that reads them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from arvg_trt.errors import BundleError, WorkspaceError
from arvg_trt.runtime.devices import this_device
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.workspace.files import sha256_file
from arvg_trt.workspace.manifest import MANIFEST, Manifest, write_manifest

from ..command_line import Finished, Outcome, arvg, assert_refused
from ..families.rar.models import TinyRar

ENGINE = Path("engines/int8/onnxruntime")


def flip(path: Path) -> None:
    """One bit in the middle, and nothing else."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def made_again(folder: Path) -> None:
    """Make a stage again with something else: other bytes, and a manifest that lists them."""
    path = next(folder.glob("decoder.onnx"))
    model = onnx.load(path, load_external_data=False)
    model.doc_string = "made again"
    onnx.save(model, path)
    manifest = json.loads((folder / MANIFEST).read_text())
    given = {k: manifest[k] for k in ("stage", "inputs", "options", "versions")}
    write_manifest(folder, Manifest(**given), manifest["results"])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def validate(finished: Finished, workspace: Path) -> Callable[..., Outcome]:
    options = ("--images", finished.validation, "--size", 64, "--rounds", 0)
    return lambda *more: arvg("validate", workspace, *options, *more)


@pytest.fixture(scope="module")
def other(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantization of the same calibration with other options, in a workspace without engines."""
    copy = tmp_path_factory.mktemp("other") / "ws"
    shutil.copytree(finished.workspace, copy)
    shutil.rmtree(copy / "engines")
    options = ("--name", "other", "--activation-bits", 32, "--smoothing", 0)
    assert arvg("quantize", copy, *options).code == 0
    return copy / "quantize" / "other"


def encode(folder: Path, picture: Path, *options: str) -> Outcome:
    outcome = arvg("encode", folder, picture, "-o", picture.parent / "t.npz", *options)
    assert (outcome.code == 0) == (picture.parent / "t.npz").is_file()
    return outcome


Damage = Callable[[Path], None]


def another_graph(folder: Path) -> None:
    shutil.copy(folder.parents[2] / "quantize/int8/encoder.onnx", folder / "encoder.onnx")


def added_graph(folder: Path) -> None:
    shutil.copy(folder / "decoder.onnx", folder / "lookup.onnx")


BUILD = "run `arvg-trt build {} --name int8 --backend onnxruntime` again"
DAMAGES: list[tuple[Damage, tuple[str, ...]]] = [
    (lambda f: flip(f / "encoder.onnx.data"), ("encoder.onnx.data: was changed after", BUILD)),
    (another_graph, ("encoder.onnx: was changed after `arvg-trt build`", BUILD)),
    (lambda f: (f / "decoder.onnx").unlink(), ("decoder.onnx: is missing", BUILD)),
    (lambda f: (f / MANIFEST).unlink(), ("has no manifest.json", "`arvg-trt build` again")),
    (added_graph, ("lookup.onnx: was not written by `arvg-trt build` (remove it",)),
]
NAMES = ("flipped", "swapped", "missing", "no-manifest", "added")


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=NAMES)
def test_an_altered_engine_is_neither_measured_nor_run(
    damage: Damage,
    words: tuple[str, ...],
    workspace: Path,
    validate: Callable[..., Outcome],
    picture: Path,
) -> None:
    damage(workspace / ENGINE)
    said = [word.format(workspace) for word in words]
    assert_refused(validate(), 9, *said, "or leave engines out with --skip-engine")
    assert_refused(encode(workspace / ENGINE, picture), 9, *said)
    np.savez(picture.parent / "codes.npz", tokens_0=np.zeros((1, 2, 2), np.int32))
    codes = ("decode", workspace / ENGINE, picture.parent / "codes.npz")
    assert_refused(arvg(*codes, "-o", picture.parent / "out"), 9, *said)
    assert not (picture.parent / "out").exists()


def test_validation_without_engines_measures_the_qdq_graphs_alone(
    workspace: Path, validate: Callable[..., Outcome]
) -> None:
    flip(workspace / ENGINE / "encoder.onnx.data")
    outcome = validate("--skip-engine")
    assert outcome.code == 0, outcome
    report = json.loads((workspace / "validate/int8/report.json").read_text())
    assert list(report["accuracy"]) == ["qdq"] and report["engines"] == []


def test_an_engine_of_another_quantization_is_refused(
    workspace: Path, other: Path, validate: Callable[..., Outcome], picture: Path
) -> None:
    shutil.copytree(other, workspace / "quantize/other")
    shutil.copytree(workspace / "engines/int8", workspace / "engines/other")
    words = ("holds the engine of the quantization int8", "--name other", "or remove the folder")
    assert_refused(validate("--name", "other"), 9, *words)
    assert_refused(encode(workspace / "engines/other/onnxruntime", picture), 9, *words)


def test_an_engine_is_stale_once_its_quantization_is_made_anew(
    workspace: Path, other: Path, validate: Callable[..., Outcome], picture: Path
) -> None:
    shutil.rmtree(workspace / "quantize/int8")
    shutil.copytree(other, workspace / "quantize/int8")
    words = ("made from another quantization: quantize/", BUILD.format(workspace))
    assert_refused(validate(), 9, *words, "--skip-engine")
    assert_refused(encode(workspace / ENGINE, picture), 9, *words)
    assert validate("--skip-engine").code == 0


def test_all_that_came_of_an_export_is_stale_once_it_is_made_anew(
    workspace: Path, validate: Callable[..., Outcome], picture: Path
) -> None:
    made_again(workspace / "export")
    stale = "was made from another export: export/decoder.onnx differs"
    calibrate = f"run `arvg-trt calibrate {workspace}` again"
    assert_refused(validate(), 9, "calibrate: " + stale, calibrate)
    for folder in ("quantize/int8", ENGINE):
        assert_refused(encode(workspace / folder, picture), 9, stale, calibrate)
    assert_refused(arvg("quantize", workspace), 9, stale, calibrate)
    search = ("search", workspace, "--budget", "avg_bits<=5")
    assert_refused(arvg(*search), 9, stale, calibrate)
    assert_refused(arvg("build", workspace), 9, stale, calibrate)
    assert encode(workspace / "export", picture).code == 0


@pytest.mark.parametrize("place", ["export", "quantize/int8", str(ENGINE)])
def test_what_another_stage_wrote_is_not_taken_for_it(
    workspace: Path, validate: Callable[..., Outcome], picture: Path, place: str
) -> None:
    source = "export" if place == "quantize/int8" else "quantize/int8"
    shutil.move(workspace / source, workspace.parent / "aside")
    shutil.rmtree(workspace / place, ignore_errors=True)
    shutil.copytree(workspace.parent / "aside", workspace / place)
    if place == str(ENGINE):
        shutil.move(workspace.parent / "aside", workspace / source)
    outcome = encode(workspace / place, picture)
    assert_refused(outcome, 9, f"{place}: holds what `arvg-trt {source.split('/')[0]}` wrote")
    if place != "quantize/int8":
        assert_refused(validate(), 9, f"{place}: holds what")


def test_an_engine_that_was_copied_alone_runs_and_is_checked(
    workspace: Path, picture: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "edge"
    shutil.copytree(workspace / ENGINE, alone)
    assert encode(alone, picture).code == 0
    (tmp_path / "t.npz").unlink()
    flip(alone / "decoder.onnx")
    assert_refused(encode(alone, picture), 9, "decoder.onnx: was changed", "copy the folder again")


def test_a_workspace_of_engines_alone_runs_them(workspace: Path, picture: Path) -> None:
    for stage in ("export", "calibrate", "quantize", "validate"):
        shutil.rmtree(workspace / stage)
    assert encode(workspace / ENGINE, picture).code == 0


@pytest.mark.parametrize("stage", ["export", "quantize/int8"])
def test_the_library_verifies_too(workspace: Path, stage: str) -> None:
    flip(workspace / stage / "encoder.onnx.data")
    with pytest.raises(WorkspaceError, match="was changed after"):
        ImageTokenizer.open(workspace / stage)
    with pytest.raises(WorkspaceError, match="was changed after"):
        ImageTokenizer.reference(workspace / stage)
    ImageTokenizer.open(workspace / stage, verify=False)


def test_an_altered_description_of_a_generator_is_refused(
    tiny_rar: TinyRar, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(tiny_rar.workspace, copy)
    path = copy / "export" / "generator.json"
    spec = json.loads(path.read_text())
    path.write_text(json.dumps(spec | {"num_classes": spec["num_classes"] - 1}))
    words = ("generator.json: was changed after `arvg-trt export`", "`arvg-trt export rar ")
    for args in (("generate", "--labels", "0", "-o", tmp_path / "out"), ("calibrate",)):
        assert_refused(arvg(args[0], copy, *args[1:]), 9, *words)
    assert_refused(arvg("validate", copy), 9, *words)
    with pytest.raises(WorkspaceError, match=r"generator\.json: was changed"):
        Generator.open(copy)
    path.unlink()
    outcome = arvg("generate", copy / "export", "--labels", "0", "-o", tmp_path / "out")
    assert_refused(outcome, 9, "generator.json: is missing")


def test_a_file_is_hashed_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a")
    first = sha256_file(path)
    path.write_bytes(b"b")  # within one tick of the file system's clock, of one size
    second = sha256_file(path)
    assert first != second
    os.utime(path, ns=(0, 10**18))
    assert sha256_file(path) == second
    monkeypatch.setattr("arvg_trt.workspace.files.digest_stream", None)
    assert sha256_file(path) == second


@pytest.fixture(scope="module")
def tensorrt(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with engines for TensorRT for RTX, which no session here runs."""
    pytest.importorskip("tensorrt_rtx", reason="needs arvg-trt[rtx]")
    copy = tmp_path_factory.mktemp("rtx") / "ws"
    shutil.copytree(finished.workspace, copy)
    rtx = ("--backend", "tensorrt_rtx", "--target", "sm89", "--image-size", 64)
    assert arvg("build", copy, *rtx).code == 0
    return copy


def test_a_context_model_lies_beside_every_engine_and_is_an_output(tensorrt: Path) -> None:
    """It says of itself what its half-precision copy does, so that a tokenizer reads the same."""
    folder = tensorrt / "engines/int8/rtx-sm89"
    outputs = json.loads((folder / MANIFEST).read_bytes())["outputs"]
    for graph in ("encoder", "decoder"):
        assert outputs.keys() >= {f"{graph}.engine", f"{graph}_ctx.onnx"}
        model, copy = (
            onnx.load(folder / name, load_external_data=False)
            for name in (f"{graph}_ctx.onnx", f"{graph}.onnx")
        )
        assert [node.op_type for node in model.graph.node] == ["EPContext"]
        assert list(model.metadata_props) == list(copy.metadata_props) != []
        assert list(model.graph.output) == list(copy.graph.output)
        onnx.checker.check_model(model)


def test_tensorrt_engines_are_not_replaced_by_their_twins(tensorrt: Path, picture: Path) -> None:
    folder = tensorrt / "engines/int8/rtx-sm89"
    words = (
        "holds TensorRT for RTX engines for sm89, which do not run here: the CPU was asked for",
        f"name {tensorrt / ENGINE}",
    )
    assert_refused(encode(folder, picture, "--device", "cpu"), 7, *words)
    np.savez(picture.parent / "codes.npz", tokens_0=np.zeros((1, 2, 2), np.int32))
    codes = ("decode", folder, picture.parent / "codes.npz", "-o", picture.parent / "out")
    assert_refused(arvg(*codes, "--device", "cpu"), 7, *words)
    assert not (picture.parent / "out").exists()
    made = ("generate", folder, "--labels", 0, "-o", picture.parent, "--device", "cpu")
    assert_refused(arvg(*made), 7, *words)
    with pytest.raises(BundleError, match="a session of graphs was asked for"):
        ImageTokenizer.reference(folder)
    if not this_device().gpus:
        assert_refused(encode(folder, picture), 7, "do not run here: no NVIDIA driver")
    alone = picture.parent / "alone"
    shutil.copytree(folder, alone)
    (alone / MANIFEST).unlink()
    assert_refused(encode(alone, picture), 7, "holds TensorRT engines", "there is no manifest.json")


def test_an_altered_twin_is_not_measured(
    tensorrt: Path, finished: Finished, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(tensorrt, copy)
    flip(copy / "engines/int8/rtx-sm89/encoder.onnx.data")
    outcome = arvg("validate", copy, "--images", finished.validation, "--size", 64)
    words = ("encoder.onnx.data: was changed after `arvg-trt build`", "--target sm89")
    assert_refused(outcome, 9, *words, "--skip-engine")
