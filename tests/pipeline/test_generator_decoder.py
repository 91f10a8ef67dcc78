"""A generator's image decoder: calibrated on what the loop feeds it, quantized, built, measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from arvg_trt.errors import CalibrationError, RecipeError
from arvg_trt.numerics.packing import load_packed_weights
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.runtime.folders import read_spec
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.images import from_model
from arvg_trt.runtime.sessions.open import fast_session, reference_session
from arvg_trt.runtime.sessions.session import Session, SessionObserver
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.samples.decoded import DECODED, decoded_numbers, decoder_feeds
from arvg_trt.samples.files import load_sample, sample_files

from ..command_line import arvg, assert_gate_failed, assert_refused
from ..families.mar.models import TinyMar
from ..families.par.models import TinyPar
from ..families.rar.models import SMALL, TinyRar
from ..minis.minis import Mini
from ..validate.diagnose.planted import spoil

INT8 = ("--weight-bits", 8, "--decoder-bits", 8, "--smoothing", 0)
SAMPLES = 5


class Recorder(SessionObserver):
    """Keep what the last run was fed."""

    def run(self, feeds: Any, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        self.fed = dict(feeds)
        return super().run(feeds, outputs)

    def run_on_device(self, feeds: Any, host: Any = ()) -> Any:
        arrays = {k: v if isinstance(v, np.ndarray) else v.numpy() for k, v in feeds.items()}
        self.fed = arrays
        return super().run_on_device(feeds, host)


@pytest.fixture(params=["var", "rar", "par", "mar"])
def export(
    request: pytest.FixtureRequest,
    mini_of: Callable[[str], Mini],
    tiny_rar: TinyRar,
    tiny_par: TinyPar,
    tiny_mar: TinyMar,
) -> Path:
    if request.param == "var":
        return mini_of("var").workspace / "export"
    return {"rar": tiny_rar.folder, "par": tiny_par.folder, "mar": tiny_mar.folder}[request.param]


def test_tokens_become_what_the_loop_feeds_its_decoder(export: Path) -> None:
    opened: dict[str, Recorder] = {}

    def session(path: Path, threads: int) -> Session:
        opened[path.stem] = Recorder(fast_session(path, threads))
        return opened[path.stem]

    made = Generator.open(export, session=session).generate([0, 2, 1], seed=4)
    feeds = decoder_feeds(export, read_spec(export)[1])(made.tokens)
    assert feeds.keys() == opened["decoder"].fed.keys()
    for name, value in opened["decoder"].fed.items():
        assert feeds[name].dtype == value.dtype
        np.testing.assert_allclose(feeds[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("total", [1, DECODED - 1, DECODED, DECODED + 1, 1000])
def test_images_for_the_decoder_are_spread_over_all(total: int) -> None:
    chosen = decoded_numbers(total, range(total))
    assert chosen[0] == 0 and len(set(chosen)) == len(chosen) <= min(total, DECODED)
    assert len(chosen) > min(total, DECODED) / 2 and chosen[-1] >= total / 2 * (total > 1)
    parts = [decoded_numbers(total, range(k, min(k + 40, total))) for k in range(0, total, 40)]
    assert tuple(number for part in parts for number in part) == chosen or total == 1000
    assert all(parts)  # each shard has one at least


@pytest.fixture(scope="module")
def calibrated(tiny_rar: TinyRar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("decoder") / "ws"
    shutil.copytree(tiny_rar.workspace, workspace)
    outcome = arvg("calibrate", workspace, "--samples", SAMPLES, "--batch-size", 2)
    assert outcome.code == 0, outcome
    return workspace


@pytest.fixture(scope="module")
def quantized(calibrated: Path) -> Path:
    outcome = arvg("quantize", calibrated, "--name", "int8", *INT8)
    assert outcome.code == 0, outcome
    outcome = arvg("build", calibrated, "--name", "int8")
    assert outcome.code == 0, outcome
    return calibrated


def decoder_samples(workspace: Path) -> list[dict[str, Any]]:
    return [load_sample(p) for p in sample_files(workspace / "calibrate" / "decoder-samples")]


def test_samples_are_the_tokens_of_the_pictures_that_are_made(calibrated: Path) -> None:
    rows = [load_sample(path) for path in sample_files(calibrated / "calibrate" / "samples")]
    conditional = [row for row in rows if int(row["labels"][0]) < SMALL.num_classes]
    found = decoder_samples(calibrated)
    assert len(found) == SAMPLES
    for row, sample in zip(conditional[:SAMPLES], found, strict=False):
        # The teacher-forced graph is given all tokens but the last.
        assert np.array_equal(sample["indices"].reshape(1, -1)[:, :-1], row["tokens"])


def test_tokens_of_images_are_samples_too(tiny_mar: TinyMar, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    shutil.copytree(tiny_mar.workspace, workspace)
    given = ("--images", "skimage:astronaut,coffee", "--labels", "1")
    outcome = arvg("calibrate", workspace, *given)
    assert outcome.code == 0, outcome
    found = decoder_samples(workspace)
    _, spec = read_spec(workspace / "export")
    assert [s["latent"][0, 0].size for s in found] == [spec.length] * 2
    assert np.isfinite(found[0]["latent"]).all()
    assert not np.allclose(found[0]["latent"], found[1]["latent"])


def test_silence_leaves_the_decoder_as_it_was(calibrated: Path) -> None:
    outcome = arvg("quantize", calibrated, "--name", "silent", "--smoothing", 0)
    assert outcome.code == 0, outcome
    plan = json.loads((calibrated / "quantize/silent/plan.json").read_text())["sites"]
    decoder = [e for e in plan if e["name"].startswith("decoder.") and not e["weight"]]
    assert "decoder_bits = 32" in {entry["reason"] for entry in decoder}
    feeds = decoder_samples(calibrated)[0]
    wanted, found = (
        reference_session(calibrated / f / "decoder.onnx").run(feeds)["image"]
        for f in ("export", "quantize/silent")
    )
    assert np.array_equal(wanted, found)


def test_its_bits_are_its_own_and_its_inputs_have_eight(quantized: Path) -> None:
    mixed = ("--weight-bits", 6, "--activation-bits", 6, "--decoder-bits", 4, "--smoothing", 0)
    outcome = arvg("quantize", quantized, "--name", "mixed", *mixed)
    assert outcome.code == 0, outcome
    plan = json.loads((quantized / "quantize/mixed/plan.json").read_text())["sites"]
    bits = {
        (e["name"].startswith("decoder."), e["weight"]["bits"], e["activation"]["bits"])
        for e in plan
        if e["weight"] and e["activation"]
    }
    assert bits == {(True, 4, 8), (False, 6, 6)}


def test_one_file_packs_transformer_and_decoder(quantized: Path) -> None:
    weights, _ = load_packed_weights(quantized / "quantize/int8/weights.safetensors")
    planned = json.loads((quantized / "quantize/int8/plan.json").read_text())["sites"]
    assert set(weights) == {entry["name"] for entry in planned if entry["weight"]}
    assert any(name.startswith("decoder.") for name in weights)
    assert not (quantized / "quantize/int8/decoder").exists()
    graph = onnx.load(quantized / "quantize/int8/decoder.onnx", load_external_data=False).graph
    rounded = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    assert len(rounded) >= len([n for n in weights if n.startswith("decoder.")]) // 2


def test_the_engine_computes_its_convolutions_in_integers(quantized: Path) -> None:
    folder = quantized / "engines/int8/onnxruntime"
    rows = json.loads((folder / "manifest.json").read_text())["results"]["engines"]
    row = next(row for row in rows if row["graph"] == "decoder")
    assert row["int8_sites_proved"] == row["int8_sites_planned"] > 0
    # Of float32 weights of convolutions only the first and the last are left.
    assert (folder / "decoder.onnx.data").stat().st_size > 0
    made = Generator.open(folder).generate([0, 1], seed=3)
    assert made.images.shape[0] == 2


def test_validation_measures_it_on_the_tokens_of_fp32(quantized: Path) -> None:
    outcome = arvg(
        *("validate", quantized, "--name", "int8", "--samples", 3, "--rounds", 1),
        *("--gate", "decoder_psnr>=20", "--gate", "qdq.decoder_psnr_min>=20"),
    )
    assert outcome.code == 0, outcome
    report = json.loads((quantized / "validate/int8/report.json").read_text())
    names = report["data"]["pictures"]
    labels = [int(name.rpartition(" ")[2]) for name in names]
    made = Generator.open(quantized / "export", session=reference_session).generate(
        labels, seed=ValidateOptions().seed
    )
    tokenizer = ImageTokenizer.open(quantized / "export", session=reference_session)
    side = int(np.sqrt(made.tokens.shape[1]))
    indices = tokenizer.check_tokens(made.tokens.reshape(-1, side, side))
    own = reference_session(quantized / "quantize/int8/decoder.onnx").run({"indices": indices})
    pictures = np.stack([from_model(image[None]) for image in own["image"]])
    error = np.square(pictures.astype(float) - made.images.astype(float)).mean(axis=(1, 2, 3))
    wanted = 10 * np.log10(255**2 / error)
    found = report["generation"]["qdq"]["pictures"]["decoder_psnr"]["each"]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_gate_that_fails_names_the_sites_to_raise(quantized: Path) -> None:
    coarse = ("--name", "coarse", "--weight-bits", 8, "--decoder-bits", 3, "--smoothing", 0)
    assert arvg("quantize", quantized, *coarse).code == 0
    gated = ("--samples", 2, "--rounds", 0, "--skip-engine", "--gate", "decoder_psnr>=90")
    outcome = arvg("validate", quantized, "--name", "coarse", *gated)
    assert_gate_failed(outcome, "decoder_psnr>=90")
    assert "exclude those that are rounded most coarsely, decoder." in outcome.err
    named = outcome.err.split("coarsely, ")[1].split(" (")[0]
    before = json.loads((quantized / "validate/coarse/report.json").read_text())
    assert arvg("quantize", quantized, *coarse, "--exclude", named).code == 0
    outcome = arvg("validate", quantized, "--name", "coarse", *gated)
    after = json.loads((quantized / "validate/coarse/report.json").read_text())
    first, second = (
        r["generation"]["qdq"]["pictures"]["decoder_psnr"]["mean"] for r in (before, after)
    )
    assert second > first


def test_a_calibration_without_its_samples_is_told(calibrated: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    shutil.copytree(calibrated, workspace)
    older = workspace / "calibrate"
    manifest = json.loads((older / "manifest.json").read_text())
    shutil.rmtree(older / "decoder-samples")
    manifest["outputs"] = {
        k: v for k, v in manifest["outputs"].items() if not k.startswith("decoder-samples/")
    }
    (older / "manifest.json").write_text(json.dumps(manifest))
    outcome = arvg("quantize", workspace, "--name", "int8", *INT8)
    assert_refused(outcome, CalibrationError.exit_code, "holds no samples of the image decoder")
    outcome = arvg("quantize", workspace, "--name", "silent", "--smoothing", 0)
    assert outcome.code == 0, outcome


def test_bits_of_an_encoder_are_no_generators(calibrated: Path) -> None:
    outcome = arvg("quantize", calibrated, "--name", "x", "--encoder-bits", 4)
    assert_refused(outcome, RecipeError.exit_code, "encoder_bits")


def test_a_plan_cannot_quantize_the_attention_of_a_decoder(quantized: Path, tmp_path: Path) -> None:
    plan = json.loads((quantized / "quantize/int8/plan.json").read_text())
    first = next(e for e in plan["sites"] if e["name"].startswith("decoder.") and e["activation"])
    first["other"] = first["activation"]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    outcome = arvg("quantize", quantized, "--name", "x", "--plan", path)
    assert outcome.code != 0 and first["name"] in outcome.err


@pytest.mark.parametrize("images", [(), ("--images", "skimage:astronaut,coffee,chelsea,rocket")])
def test_a_spoiled_convolution_of_it_is_diagnosed(
    quantized: Path, tmp_path: Path, images: tuple[str, ...]
) -> None:
    """On images that it makes itself, and on those that are given."""
    workspace = tmp_path / "ws"
    shutil.copytree(quantized, workspace)
    plan = json.loads((workspace / "quantize/int8/plan.json").read_text())["sites"]
    own = [e["name"] for e in plan if e["name"].startswith("decoder.") and e["activation"]]
    spoiled = own[-2]
    folder = workspace / "quantize" / "int8"
    spoil(folder, "decoder", f"{spoiled}.activation_scale", lambda scale: scale * 30)
    asked = ("--name", "int8", "--samples", 4, "--raise", 1, *images)
    labels = ("--labels", "0,1,0,1") if images else ()
    outcome = arvg("diagnose", workspace, "--json", *asked, *labels)
    assert outcome.code == 0, outcome
    found = json.loads(outcome.out)["diagnosis"]
    assert set(found["graphs"]) == {"full", "decoder"} and not found["unmeasured"]
    assert found["graphs"]["decoder"] < found["graphs"]["full"]
    assert found["raised"][0]["name"] == spoiled == found["odd_scales"][0]["name"]
    assert found["raised"][0]["measured_db"] > found["held_out_db"] + 3
    # Half of the images ranks, half measures; each image has two rows of the whole graph.
    assert found["ranked_on"] >= 4 and found["separate"]
    assert {row["name"] for row in found["sites"] if row["graph"] == "decoder"} >= {*own}


def test_the_decoder_of_a_mar_is_diagnosed_beside_its_recorded_runs(
    quantized_mar: Path, tmp_path: Path
) -> None:
    workspace = tmp_path / "ws"
    shutil.copytree(quantized_mar, workspace)
    outcome = arvg("quantize", workspace, "--name", "whole", *INT8)
    assert outcome.code == 0, outcome
    asked = ("--name", "whole", "--samples", 2, "--raise", 0, "--site", "decoder.*", "--json")
    outcome = arvg("diagnose", workspace, *asked)
    assert outcome.code == 0, outcome
    found = json.loads(outcome.out)["diagnosis"]
    assert {"pass", "decoder"} <= set(found["graphs"]) and not found["unmeasured"]
    alone = [row for row in found["sites"] if row["graph"] == "decoder"]
    assert alone and all(row["alone_db"] > 10 for row in alone)
