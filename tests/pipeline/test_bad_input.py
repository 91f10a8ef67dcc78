"""Mistakes of users end in one line that names them, the right exit code, nothing half-written."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from arvg_trt.families.cosmos.model import CosmosTokenizer
from arvg_trt.families.variants import find_model
from arvg_trt.workspace.workspace import WORKSPACE_FILE

from ..command_line import CHECKPOINT, MODEL, Finished, arvg, assert_refused, digests, leftovers

KEY = "encoder.mid.block_1.conv1.weight"


def refuse(
    code: int, words: tuple[str, ...], *args: object, untouched: tuple[Path, ...] = ()
) -> None:
    """The command is refused, and `untouched` holds the same bytes under the same names."""
    before = [digests(path) for path in untouched]
    outcome = arvg(*args)
    assert_refused(outcome, code, *words)
    assert [digests(path) for path in untouched] == before


# Checkpoints


class Payload:
    """Pickled, it makes the file that it names when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.marker}'",)


def half_of(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def changed_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    weights = load_file(CHECKPOINT)
    change(weights)
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return path


def missing_file(folder: Path) -> Path:
    return folder / "nothing.safetensors"


def text(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"text{suffix}"
        path.write_text("this is no checkpoint, only some words\n" * 5)
        return path

    return make


def empty_file(folder: Path) -> Path:
    path = folder / "empty.safetensors"
    path.touch()
    return path


def empty_folder(folder: Path) -> Path:
    path = folder / "weights"
    path.mkdir()
    return path


def truncated_safetensors(folder: Path) -> Path:
    return half_of(Path(shutil.copy(CHECKPOINT, folder / "half.safetensors")))


def truncated_pt(folder: Path) -> Path:
    return half_of(changed_weights(folder / "half.pt", lambda weights: None))


def truncated_jit(folder: Path) -> Path:
    path = folder / "half.jit"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/data.pkl", os.urandom(1000))
    return half_of(path)


def damaged_jit(folder: Path) -> Path:
    path = folder / "damaged.jit"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/data.pkl", b"\x80\x02ctorch\nFloatStorage\n)R.")
    return path


def other_variant(folder: Path) -> Path:
    config = replace(find_model(MODEL).config, spatial_compression=16)
    path = folder / "di16x16.safetensors"
    save_file(CosmosTokenizer(config).state_dict(), path)
    return path


def missing_key(folder: Path) -> Path:
    return changed_weights(folder / "less.safetensors", lambda w: w.pop(KEY))


def extra_key(folder: Path) -> Path:
    return changed_weights(
        folder / "more.safetensors", lambda w: w.update({"encoder.spare.weight": torch.zeros(3)})
    )


def nan_weight(folder: Path) -> Path:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights[KEY][0, 0, 0, 0] = float("nan")

    return changed_weights(folder / "nan.safetensors", spoil)


def misshapen_weight(folder: Path) -> Path:
    return changed_weights(
        folder / "shape.safetensors", lambda w: w.update({KEY: w[KEY][:1].clone()})
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing_file, ("nothing.safetensors", "no such file")),
        (empty_file, ("empty.safetensors", "is empty")),
        (empty_folder, ("weights", "no complete checkpoint", "model.safetensors")),
        (text(".safetensors"), ("text.safetensors", "not a complete safetensors file")),
        (text(".pt"), ("text.pt", "is not a checkpoint")),
        (text(".jit"), ("text.jit", "not a complete TorchScript archive")),
        (text(".onnx"), ("text.onnx", "is not a checkpoint", ".safetensors")),
        (truncated_safetensors, ("half.safetensors", "not a complete safetensors file")),
        (truncated_pt, ("half.pt", "not a complete checkpoint")),
        (truncated_jit, ("half.jit", "not a complete TorchScript archive")),
        (damaged_jit, ("damaged.jit", "damaged TorchScript archive")),
        (other_variant, ("di16x16.safetensors", "spatial_compression is 16, not 8")),
        (missing_key, ("less.safetensors", KEY)),
        (extra_key, ("more.safetensors", "encoder.spare.weight")),
        (nan_weight, ("nan.safetensors", "NaN", KEY)),
        (misshapen_weight, ("shape.safetensors", KEY)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_checkpoint_is_refused_by_name_and_leaves_no_workspace(
    make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    checkpoint = make(tmp_path)
    refuse(
        4,
        words,
        *("export", MODEL, tmp_path / "ws", "--checkpoint", checkpoint),
        untouched=(tmp_path,),
    )
    assert not (tmp_path / "ws").exists()


def test_onnx_graph_given_as_checkpoint_is_refused(finished: Finished, tmp_path: Path) -> None:
    graph = finished.workspace / "export" / "encoder.onnx"
    for name in ("encoder.onnx", "encoder.pt"):
        shutil.copy(graph, tmp_path / name)
        refuse(
            4,
            (name, "is not a checkpoint"),
            *("export", MODEL, tmp_path / "ws", "--checkpoint", tmp_path / name),
        )


def test_path_of_a_missing_file_is_not_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(
        4,
        ("weights/model.jit: no such file",),
        *("export", MODEL, "ws", "--checkpoint", "weights/model.jit"),
    )


def payload_pt(path: Path, payload: Payload) -> None:
    torch.save({"weight": torch.zeros(2), "hook": payload}, path)


def payload_plain_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def payload_jit(path: Path, payload: Payload) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/data.pkl", pickle.dumps(payload, 2))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("evil.pt", payload_pt, ("posix.system", "not read")),
        ("evil.ckpt", payload_plain_pickle, ("is not a checkpoint",)),
        ("evil.jit", payload_jit, ("posix.system", "not read")),
        ("jit-renamed.pt", payload_jit, ("posix.system", "not read")),
    ],
)
def test_pickle_with_a_payload_never_runs(
    name: str, write: Callable[[Path, Payload], None], words: tuple[str, ...], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    write(tmp_path / name, Payload(marker))
    refuse(4, (name, *words), "export", MODEL, tmp_path / "ws", "--checkpoint", tmp_path / name)
    assert not marker.exists()
    assert not (tmp_path / "ws").exists()


def test_the_payload_of_these_tests_does_run_when_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_bad_checkpoint_leaves_the_last_good_export(exported: Path, tmp_path: Path) -> None:
    checkpoint = nan_weight(tmp_path)
    refuse(
        4,
        (KEY,),
        *("export", MODEL, exported, "--checkpoint", checkpoint),
        untouched=(exported / "export",),
    )
    assert not leftovers(exported)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("cosmos-mini-di8x9", ("cosmos-mini-di8x9", "nearest", MODEL)),
        ("cosmos-di16x16", ("no checkpoint given", "nvidia/Cosmos-0.1-Tokenizer-DI16x16")),
    ],
)
def test_model_without_weights_or_entry_is_refused(
    model: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    refuse(4, words, "export", model, tmp_path / "ws")


def test_checkpoint_of_a_smaller_model_names_what_it_is(tmp_path: Path) -> None:
    refuse(
        4,
        ("is not cosmos-di8x8", "channels is 32, not 128", f"it is a {MODEL}"),
        *("export", "cosmos-di8x8", tmp_path / "ws", "--checkpoint", CHECKPOINT),
    )


# Calibration images


def picture(folder: Path, name: str = "good.png") -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / name)


def array(folder: Path, name: str, low: float, high: float, bad: int = 0) -> None:
    values = np.random.default_rng(0).uniform(low, high, (3, 64, 64)).astype(np.float32)
    values.reshape(-1)[:bad] = np.nan
    np.save(folder / name, values)


def no_folder(folder: Path) -> None:
    folder.rmdir()


def file_for_folder(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("no folder")


def only_other_files(folder: Path) -> None:
    (folder / "notes.txt").write_text("no image")


def unreadable(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (folder / "b.jpg").write_text("no image")


def one_nan(folder: Path) -> None:
    picture(folder)
    array(folder, "broken.npy", -1, 1, bad=7)


def all_nan(folder: Path) -> None:
    array(folder, "a.npy", -1, 1, bad=3 * 64 * 64)
    array(folder, "b.npy", -1, 1, bad=3 * 64 * 64)


def bytes_range(folder: Path) -> None:
    array(folder, "bytes.npy", 0, 255)


def unit_range(folder: Path) -> None:
    array(folder, "unit.npy", 0, 1)


def constant_picture(folder: Path) -> None:
    picture(folder)
    Image.new("RGB", (64, 64), (7, 7, 7)).save(folder / "grey.png")


def constant_array(folder: Path) -> None:
    np.save(folder / "flat.npy", np.full((64, 64, 3), -0.5, np.float32))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_folder, ("images", "no such folder")),
        (file_for_folder, ("images", "is a file")),
        (lambda folder: None, ("images", "no image files", ".png")),
        (only_other_files, ("images", "no image files")),
        (unreadable, ("images", "2 files, none readable")),
        (one_nan, ("broken.npy", "7 values are NaN")),
        (all_nan, ("a.npy", f"{3 * 64 * 64} values are NaN")),
        (bytes_range, ("bytes.npy", "[-1, 1]", "127.5")),
        (unit_range, ("unit.npy", "looks like 0..1", "2 * x - 1")),
        (constant_picture, ("grey.png", "constant image", "7")),
        (constant_array, ("flat.npy", "constant image")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("stage", ["calibrate", "validate"])
def test_bad_images_are_refused_by_name(
    stage: str,
    make: Callable[[Path], None],
    words: tuple[str, ...],
    finished: Finished,
    tmp_path: Path,
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    make(images)
    refuse(
        5,
        words,
        *(stage, finished.workspace, "--images", images, "--size", 64),
        untouched=(tmp_path, finished.workspace),
    )


def test_unreadable_image_beside_good_ones_is_skipped_with_a_warning(
    exported: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    picture(images)
    (images / "torn.png").write_text("no image")
    outcome = arvg("calibrate", exported, "--images", images, "--samples", 2, "--size", 64)
    assert outcome.code == 0
    assert outcome.err == "warning: skipped 1 unreadable file: torn.png: no picture\n"
    manifest = json.loads((exported / "calibrate" / "manifest.json").read_text())
    assert manifest["results"]["skipped"] == ["torn.png: no picture"]


def test_without_images_nothing_is_calibrated_and_noise_is_only_offered(exported: Path) -> None:
    refuse(5, ("no calibration images", "--images", "--synthetic"), "calibrate", exported)
    assert not (exported / "calibrate").exists()


def test_noise_excludes_images(finished: Finished) -> None:
    refuse(
        3,
        ("synthetic", "exclude"),
        *("calibrate", finished.workspace, "--synthetic", "--images", finished.calibration),
    )


def test_noise_is_stamped_into_manifest_and_report(exported: Path, finished: Finished) -> None:
    size = ("--size", 64)
    assert arvg("calibrate", exported, "--synthetic", "--samples", 1, *size).code == 0
    assert arvg("quantize", exported, "--activation-bits", 32).code == 0
    images = ("--images", finished.validation, "--rounds", 0)
    assert arvg("validate", exported, *images, *size).code == 0
    manifest = json.loads((exported / "calibrate" / "manifest.json").read_text())
    assert manifest["results"]["synthetic"] is True
    assert manifest["options"]["synthetic"] is True
    folder = exported / "validate" / "int8"
    assert json.loads((folder / "report.json").read_text())["data"]["calibration"] == [
        "synthetic noise"
    ]
    for name in ("report.md", "report.html"):
        assert "Calibrated on synthetic noise" in (folder / name).read_text()


@pytest.mark.parametrize(
    ("stage", "code", "options"),
    [
        ("calibrate", 5, ("--size", 100)),
        ("validate", 5, ("--size", 100)),
        ("build", 6, ("--backend", "tensorrt_rtx", "--target", "sm86", "--image-size", 100)),
    ],
)
def test_size_that_the_stride_does_not_divide_is_refused(
    stage: str, code: int, options: tuple[object, ...], finished: Finished
) -> None:
    images = () if stage == "build" else ("--images", finished.calibration)
    refuse(
        code,
        ("100", "not a multiple of the stride 8"),
        *(stage, finished.workspace, *images, *options),
        untouched=(finished.workspace,),
    )


# Options, names, targets and formats


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("calibrate", "--samples", 0), ("samples must be at least 1, got 0",)),
        (("calibrate", "--seed", -1), ("seed must be at least 0, got -1",)),
        (("quantize", "--encoder-bits", 9), ("encoder_bits", "got 9")),
        (("quantize", "--smoothing", 2), ("smoothing", "got 2")),
        (
            ("quantize", "--quantize-method", "log_quantization", "--activation-bits", 8),
            ("log_quantization is weight-only", "activation_bits"),
        ),
        (("quantize", "--exclude", "encoder.down.9.*"), ("encoder.down.9.*", "matches no site")),
        (("quantize", "--exclude", "*"), ("0 sites",)),
        (("quantize", "--attention", "fp8"), ("attention", "only a generator's")),
        (("quantize", "--name", "../elsewhere"), ("--name", "../elsewhere")),
        (("quantize", "--name", "fp16"), ("fp16", "unquantized")),
        (("build", "--backend", "tensorrt_rtx"), ("targets", "--target rtx4090")),
        (("build", "--target", "sm86"), ("onnxruntime takes no targets",)),
        (("build", "--max-batch", 0), ("max_batch", "got 0")),
        (("build", "--recipe", "cosmos-mini-int8", "--target", "sm86"), ("--target", "--backend")),
        (("build", "--recipe", "cosmos-mini-int8", "--fp16"), ("--fp16", "--backend")),
        (("validate", "--size", 0), ("size must be at least 1",)),
        (("validate", "--rounds", -1), ("rounds must be at least 0",)),
        (("validate", "--gate", "psnr_drop"), ("'psnr_drop'", "METRIC OPERATOR NUMBER")),
        (("validate", "--gate", "psnr_drp<=1"), ("psnr_drp", "psnr_drop")),
        (("validate", "--gate", "psnr_drop<=much"), ("psnr_drop<=much",)),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value[-1], int) else None,
)
def test_option_out_of_range_is_refused_before_the_work(
    args: tuple[object, ...], words: tuple[str, ...], finished: Finished
) -> None:
    stage, *options = args
    refuse(3, words, stage, finished.workspace, *options, untouched=(finished.workspace,))


@pytest.mark.parametrize(
    "args",
    [
        ("quantize", "--smoothing", "much"),
        ("quantize", "--quantize-method", "per_chanel"),
        ("build", "--backend", "tensort"),
    ],
)
def test_unknown_choice_lists_the_known_ones(args: tuple[str, ...], finished: Finished) -> None:
    stage, *options = args
    outcome = arvg(stage, finished.workspace, *options)
    assert outcome.code == 2
    assert any(known in outcome.err for known in ("per_channel", "tensorrt", '"search"'))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("rtx6090", ("rtx6090", "unknown target", "rtx5090")),
        ("orin", ("orin", "no sm87", "a bundle with the graphs")),
    ],
)
def test_target_that_nothing_can_be_built_for_is_refused(
    target: str, words: tuple[str, ...], finished: Finished
) -> None:
    refuse(
        6,
        words,
        *("build", finished.workspace, "--backend", "tensorrt_rtx", "--target", target),
        untouched=(finished.workspace,),
    )


def test_tensorrt_without_package_or_gpu_says_so(finished: Finished) -> None:
    refuse(
        6,
        ("TensorRT",),
        *("build", finished.workspace, "--backend", "tensorrt"),
        untouched=(finished.workspace,),
    )


def test_onnxruntime_builds_no_fp16(finished: Finished) -> None:
    refuse(6, ("FP16",), "build", finished.workspace, "--name", "fp16")


def test_fp8_site_is_refused_before_the_build_with_the_nearest_format(
    workspace: Path, tmp_path: Path
) -> None:
    plan = json.loads((workspace / "quantize" / "int8" / "plan.json").read_text())
    site = next(s for s in plan["sites"] if s["activation"])
    site["weight"] = {"bits": 8, "grid": "fp8"}
    site["activation"] = {"bits": 8, "grid": "fp8"}
    edited = tmp_path / "plan.json"
    edited.write_text(json.dumps(plan))
    assert arvg("quantize", workspace, "--name", "mixed", "--plan", edited).code == 0
    words = (site["name"], "wants fp8", "nearest that works: int8")
    refuse(
        6,
        (*words, "sm86"),
        *("build", workspace, "--name", "mixed", "--backend", "tensorrt_rtx", "--target", "sm86"),
    )
    refuse(6, (*words, "ONNX Runtime"), "build", workspace, "--name", "mixed")
    assert not (workspace / "engines" / "mixed").exists()


# Plans


def edit_plan(workspace: Path, change: Callable[[dict[str, object]], object]) -> Path:
    source = workspace / "quantize" / "int8" / "plan.json"
    plan = json.loads(source.read_text())
    change(plan)
    edited = workspace.parent / "edited.json"
    edited.write_text(json.dumps(plan))
    return edited


def test_edited_plan_decides_what_is_quantized(workspace: Path) -> None:
    names: list[str] = []

    def keep_one_in_fp32(plan: dict) -> None:
        site = next(s for s in plan["sites"] if s["activation"])
        site.update(weight=None, activation=None, smoothing=None, reason="by hand")
        names.append(site["name"])

    edited = edit_plan(workspace, keep_one_in_fp32)
    assert arvg("quantize", workspace, "--name", "hand", "--plan", edited).code == 0
    manifests = [
        json.loads((workspace / "quantize" / n / "manifest.json").read_text())
        for n in ("int8", "hand")
    ]
    quantized = [m["results"]["quantized"] for m in manifests]
    assert quantized[1] == quantized[0] - 1
    row = next(s for s in manifests[1]["results"]["sites"] if s["name"] == names[0])
    assert row["reason"] == "by hand"
    assert manifests[1]["inputs"]["plan"] == digests(edited)["edited.json"]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda p: p.update(schema="arvg-trt/plan/v9"), 3, ("edited.json", "plan/v9")),
        (lambda p: p["sites"][3].update(weigth=None), 3, ("edited.json", "weigth")),
        (lambda p: p["sites"][3].update(weight={"bits": 99}), 3, ("edited.json", "99")),
        (lambda p: p["sites"].pop(3), 3, ("has no entry",)),
        (lambda p: [s.update(weight=None, activation=None) for s in p["sites"]], 3, ("0 sites",)),
        (lambda p: p["sites"].append(p["sites"][0]), 3, ("two entries",)),
        (lambda p: p["sites"].append({"name": "conv_x"}), 3, ("conv_x is not a site",)),
        (
            lambda p: next(s for s in p["sites"] if s["activation"]).update(weight=None),
            3,
            ("quantizes its input", "weight"),
        ),
    ],
)
def test_plan_that_does_not_fit_is_refused_by_entry(
    change: Callable[[dict[str, object]], object],
    code: int,
    words: tuple[str, ...],
    workspace: Path,
) -> None:
    edited = edit_plan(workspace, change)
    refuse(code, words, "quantize", workspace, "--plan", edited, untouched=(workspace,))


def test_missing_plan_is_refused(finished: Finished, tmp_path: Path) -> None:
    refuse(
        3,
        ("none.json", "no such file"),
        *("quantize", finished.workspace, "--plan", tmp_path / "none.json"),
    )


def test_plan_edited_in_place_is_not_built_from(workspace: Path) -> None:
    plan = workspace / "quantize" / "int8" / "plan.json"
    text = plan.read_text()
    changed = re.sub(r'"smoothing": (null|"\w+"|[0-9.]+)', '"smoothing": 0.25', text)
    assert changed != text
    plan.write_text(changed)
    refuse(
        9,
        ("plan.json", "was changed", "--plan FILE"),
        *("build", workspace),
        untouched=(workspace,),
    )


# Workspaces


@pytest.mark.parametrize(
    ("stage", "missing", "advice"),
    [
        ("calibrate", "export", "arvg-trt export"),
        ("quantize", "export", "arvg-trt export"),
        ("quantize", "calibrate", "arvg-trt calibrate"),
        ("build", "quantize", "arvg-trt quantize"),
        ("validate", "quantize", "arvg-trt quantize"),
    ],
)
def test_stage_out_of_order_names_the_command_to_run(
    stage: str, missing: str, advice: str, workspace: Path, finished: Finished
) -> None:
    shutil.rmtree(workspace / missing)
    images = ("--images", finished.validation) if stage in ("calibrate", "validate") else ()
    refuse(9, (f"{missing}/", advice), stage, workspace, *images, untouched=(workspace,))


def test_stage_in_a_workspace_that_is_not_there_makes_none(tmp_path: Path) -> None:
    refuse(9, ("typo", "arvg-trt export"), "quantize", tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_workspace_of_a_newer_version_is_refused_and_kept(workspace: Path, tmp_path: Path) -> None:
    (workspace / WORKSPACE_FILE).write_text('{"schema": "arvg-trt/workspace", "version": 99}')
    refuse(
        9,
        (WORKSPACE_FILE, "99", "newer", "update"),
        *("quantize", workspace),
        untouched=(workspace,),
    )


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"version": "old"}'])
def test_damaged_workspace_file_is_refused_by_name(content: str, workspace: Path) -> None:
    (workspace / WORKSPACE_FILE).write_text(content)
    refuse(9, (WORKSPACE_FILE,), "quantize", workspace, untouched=(workspace,))


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ("arvg-trt/manifest/v1", "arvg-trt/manifest/v9", "manifest/v9"),
        ('"stage"', '"stage', "malformed"),
    ],
)
def test_manifest_of_unknown_form_is_refused_by_name(
    old: str, new: str, word: str, workspace: Path
) -> None:
    manifest = workspace / "calibrate" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, new))
    refuse(9, ("calibrate/manifest.json", word), "quantize", workspace, untouched=(workspace,))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("export/decoder.onnx.data", Path.unlink, ("decoder.onnx.data", "missing", "export")),
        ("export/encoder.onnx", half_of, ("encoder.onnx", "was changed", "export")),
        (
            "calibrate/statistics.safetensors",
            half_of,
            ("statistics.safetensors", "was changed", "calibrate"),
        ),
    ],
)
def test_damaged_output_of_an_earlier_stage_is_refused_by_name(
    name: str, damage: Callable[[Path], object], words: tuple[str, ...], workspace: Path
) -> None:
    damage(workspace / name)
    refuse(9, words, "quantize", workspace, untouched=(workspace,))


def test_file_in_the_place_of_a_workspace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    refuse(9, ("file", "not a folder"), "export", MODEL, path, untouched=(tmp_path,))
    words = (f"{path}: is not a folder", "name another folder")
    refuse(9, words, "export", MODEL, path / "ws", untouched=(tmp_path,))


@pytest.mark.parametrize("stage", ["export", "calibrate", "quantize", "build", "validate", "run"])
def test_second_run_on_a_workspace_is_refused(stage: str, finished: Finished) -> None:
    args: dict[str, tuple[object, ...]] = {
        "export": (MODEL, finished.workspace),
        "calibrate": (finished.workspace, "--images", finished.calibration),
        "validate": (finished.workspace, "--images", finished.validation),
        "run": (finished.recipe,),
    }
    with (finished.workspace / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refuse(
            9,
            (str(finished.workspace), "another run"),
            *(stage, *args.get(stage, (finished.workspace,))),
            untouched=(finished.workspace,),
        )
    assert arvg("run", finished.recipe).code == 0


# Codec, reports, inspection


def test_file_that_is_no_image_is_not_encoded(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    folder = finished.workspace / "export"
    for name in ("a.png", "none.png"):
        refuse(5, (name,), "encode", folder, tmp_path / name, "-o", tmp_path / "t.npz")
    assert not (tmp_path / "t.npz").exists()


def test_arguments_of_encode_in_the_wrong_order_are_told_from_a_damaged_folder(
    finished: Finished, tmp_path: Path
) -> None:
    picture(tmp_path)
    folder, output = finished.workspace / "export", ("-o", tmp_path / "t.npz")
    outcome = arvg("encode", tmp_path / "good.png", folder, *output)
    assert_refused(outcome, 7, "good.png: holds no model", "name a workspace")
    assert "missing" not in outcome.err
    refuse(5, ("is a directory", "FOLDER/*.jpg"), "encode", folder, tmp_path, *output)


def test_wrong_name_of_a_quantization_names_those_that_are_there(
    finished: Finished, tmp_path: Path
) -> None:
    for command in (("build",), ("bundle", "-o", tmp_path / "b.tar")):
        outcome = arvg(command[0], finished.workspace, "--name", "int4", *command[1:])
        assert_refused(outcome, 9, "--name int8")


def test_folder_without_graphs_is_refused(finished: Finished, tmp_path: Path) -> None:
    picture(tmp_path)
    args = ("encode", tmp_path, tmp_path / "good.png", "-o", tmp_path / "t.npz")
    refuse(7, ("encoder.onnx is missing",), *args)


@pytest.mark.parametrize("name", ["encoder.onnx", "encoder.onnx.data"])
def test_truncated_graph_is_refused(name: str, exported: Path, tmp_path: Path) -> None:
    picture(tmp_path)
    half_of(exported / "export" / name)
    args = ("encode", exported / "export", tmp_path / "good.png", "-o", tmp_path / "t.npz")
    refuse(9, (name, "was changed", "arvg-trt export"), *args)


def sized(height: int, width: int) -> dict[str, np.ndarray]:
    """Tokens of 16x16 pixels, and the size of another picture."""
    return {"tokens_0": np.zeros((1, 2, 2), np.int32), "size_0": np.array([height, width])}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"other_0": np.zeros((1, 2, 2), np.int32)}, ("holds no tokens",)),
        ({"tokens": np.zeros((1, 4), np.int64)}, ("is of `arvg-trt generate --tokens`", "-o")),
        ({"tokens_0": np.full((1, 2, 2), 64000, np.int32)}, ("64000", "another model")),
        ({"tokens_0": np.full((1, 2, 2), -1, np.int32)}, ("-1", "another model")),
        ({"tokens_0": np.zeros((1, 2, 2), np.float32)}, ("float32", "integers")),
        ({"tokens_0": np.zeros((2, 2), np.int32)}, ("(2, 2)", "[N, h, w]")),
        ({"tokens_0": np.array([{"a": 1}], dtype=object)}, ("not a .npz",)),
        ({"tokens_0": np.zeros((2, 2, 2), np.int32)}, ("tokens_0", "2 pictures")),
        (sized(-37, 53), ("size_0", "[-37, 53]", "not a height and a width")),
        (sized(0, 16), ("size_0", "[0, 16]")),
        (sized(37, 53), ("size_0", "37x53 pixels", "tokens are of 16x16")),
        ({**sized(1, 1), "size_0": np.zeros((3, 3), np.int64)}, ("size_0", "an array [3, 3]")),
        ({**sized(1, 1), "size_0": np.array([1.5, 2])}, ("size_0", "[1.5, 2.0]")),
    ],
)
def test_tokens_of_another_model_are_not_decoded(
    arrays: dict[str, np.ndarray], words: tuple[str, ...], finished: Finished, tmp_path: Path
) -> None:
    np.savez(tmp_path / "t.npz", **arrays)
    refuse(
        7,
        words,
        *("decode", finished.workspace / "export", tmp_path / "t.npz", "-o", tmp_path / "out"),
    )
    assert not (tmp_path / "out").exists()


def test_text_given_as_tokens_is_not_decoded(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_text("no tokens")
    args = ("decode", finished.workspace / "export", tmp_path / "t.npz", "-o", tmp_path / "out")
    refuse(7, ("t.npz", "not a .npz"), *args)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("new.json", "no such file")),
        ("{", ("new.json", "cannot be read")),
        ('{"schema": "arvg-trt/report/v9"}', ("new.json", "report/v9")),
    ],
)
def test_report_that_cannot_be_read_is_not_compared(
    content: str | None, words: tuple[str, ...], finished: Finished, tmp_path: Path
) -> None:
    other = tmp_path / "new.json"
    if content is not None:
        other.write_text(content)
    refuse(9, words, "compare", finished.workspace / "validate" / "int8", other)


def test_one_report_is_not_compared(finished: Finished) -> None:
    refuse(9, ("one report",), "compare", finished.workspace / "validate" / "int8")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none", None, ("no such file or folder",)),
        ("notes.txt", b"words", ("nothing that arvg-trt writes",)),
        ("noise.onnx", bytes(range(256)), ("is not an ONNX model",)),
    ],
)
def test_thing_that_is_no_artifact_is_not_inspected(
    name: str, content: bytes | None, words: tuple[str, ...], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refuse(9, (name, *words), "inspect", tmp_path / name)
