"""`validate` of quantized generators: numbers against plain sessions, gates, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from arvg_trt.errors import CalibrationError
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.images import to_model
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.samples.sources import check_kind
from arvg_trt.validate.measure.generator_measurement import GeneratorMeasurement
from arvg_trt.validate.metrics.frechet import frechet_distance
from arvg_trt.validate.report.schema import ENGINE, QDQ
from arvg_trt.workspace.facts import Exported
from arvg_trt.workspace.manifest import MANIFEST
from arvg_trt.workspace.workspace import Workspace

from ..command_line import Outcome, arvg, assert_gate_failed, assert_refused, skipped_twice
from ..families.rar.models import SMALL, TinyRar

SAMPLES, SEED = 6, 1000


SIX_BITS = ("--name", "w6a6", "--weight-bits", 6, "--activation-bits", 6, "--rounding", "gptq")


@pytest.fixture(scope="module")
def quantized(tiny_rar: TinyRar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a quantization at six bits."""
    workspace = tmp_path_factory.mktemp("validated") / "ws"
    shutil.copytree(tiny_rar.workspace, workspace)
    for args in (
        ("calibrate", workspace, "--samples", 5, "--batch-size", 5),
        ("quantize", workspace, *SIX_BITS),
    ):
        outcome = arvg(*args)
        assert outcome.code == 0, outcome
    return workspace


def validate(workspace: Path, *args: object) -> Outcome:
    sampled = ("--samples", SAMPLES, "--rounds", 0)
    return arvg("validate", workspace, "--name", "w6a6", *sampled, *args)


def report_of(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "validate/w6a6/report.json").read_text())
    return found


@pytest.fixture(scope="module")
def report(quantized: Path) -> dict[str, Any]:
    outcome = validate(quantized, "--gate", "kl<=1", "--gate", "qdq.token_agreement>=0")
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    return report_of(quantized)


def labels_of(report: dict[str, Any]) -> list[int]:
    """Classes of the pictures, as their names say."""
    return [int(name.rpartition(" ")[2]) for name in report["data"]["pictures"]]


def logits_of(folder: Path, labels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    feeds = {"labels": labels, "tokens": tokens[:, : SMALL.length - 1].astype(np.int64)}
    return reference_session(folder / "full.onnx").run(feeds)["logits"].astype(np.float64)


def probabilities(logits: np.ndarray) -> np.ndarray:
    wide = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return wide / wide.sum(axis=-1, keepdims=True)


def test_logits_are_compared_on_own_pictures_with_and_without_their_class(
    quantized: Path, report: dict[str, Any]
) -> None:
    found = report["generation"]["qdq"]["logits"]
    made = Generator.open(quantized, session=reference_session).generate(
        labels_of(report), seed=SEED
    )
    labels = np.array([x for c in labels_of(report) for x in (c, SMALL.num_classes)])
    tokens = np.repeat(made.tokens, 2, axis=0)
    p, q = (
        probabilities(logits_of(folder, labels, tokens))
        for folder in (quantized / "export", quantized / "quantize" / "w6a6")
    )
    assert found["positions"] == 2 * SAMPLES * SMALL.length
    assert found["kl"] == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=-1)), rel=1e-4)
    assert found["top1"] == np.mean(p.argmax(axis=-1) == q.argmax(axis=-1))
    for name, chances in (("cross_entropy_fp32", p), ("cross_entropy", q)):
        taken = np.take_along_axis(chances[::2], tokens[::2, :, None], axis=-1)
        assert found[name] == pytest.approx(-np.log(taken).mean(), rel=1e-5)


def test_every_site_is_compared_with_the_folds_of_others_taken_back(
    quantized: Path, report: dict[str, Any]
) -> None:
    """Without that, the rows that hold another's scales would be off by them: a few decibels."""
    found = report["generation"]["qdq"]["sites"]
    plan = json.loads((quantized / "quantize/w6a6/plan.json").read_text())["sites"]
    linears = [site["name"] for site in plan if site["weight"]]
    assert list(found) == linears and len(linears) > 8
    assert min(found.values()) > 10


def test_pictures_of_the_same_seed_are_compared(quantized: Path, report: dict[str, Any]) -> None:
    fp32, own = (
        Generator.open(folder, session=reference_session).generate(labels_of(report), seed=SEED)
        for folder in (quantized, quantized / "quantize" / "w6a6")
    )
    found = report["generation"]["qdq"]["pictures"]
    same = fp32.tokens == own.tokens
    assert found["token_agreement"] == pytest.approx(same.mean())
    assert found["first_difference"] == [
        None if row.all() else list(row).index(False) for row in same
    ]
    assert len(report["data"]["pictures"]) == SAMPLES
    assert report["data"]["pictures"] == report["data"]["validation"]
    assert report["data"]["sampling"]["cfg"] == 4.0 and report["data"]["sampling"]["seed"] == SEED


def test_the_distance_is_of_the_latents_of_the_own_encoder_and_says_so(
    quantized: Path, report: dict[str, Any]
) -> None:
    tokenizer = ImageTokenizer.open(quantized)
    folders = ((quantized, SEED), (quantized / "quantize" / "w6a6", SEED), (quantized, SEED + 1))
    sets = []
    for folder, seed in folders:
        made = Generator.open(folder, session=reference_session).generate(
            labels_of(report), seed=seed
        )
        latents = [tokenizer.encode(to_model(image))[1][0] for image in made.images]
        flat = np.stack(latents).astype(np.float64).reshape(SAMPLES, 8, -1)
        sets.append(np.concatenate([flat.mean(axis=2), flat.std(axis=2)], axis=1))
    (row,) = report["generation"]["qdq"]["pictures"]["frechet"]
    assert row["distance"] == pytest.approx(frechet_distance(sets[0], sets[1]), rel=1e-6)
    assert row["floor"] == pytest.approx(frechet_distance(sets[0], sets[2]), rel=1e-6)
    assert row["key"] == "frechet_latent" and "workspace's encoder" in row["features"]
    page = (quantized / "validate/w6a6/report.md").read_text()
    assert "Not FID" in page and "workspace's encoder" in page


def test_every_form_of_the_report_is_written_with_pictures_and_gates(
    quantized: Path, report: dict[str, Any]
) -> None:
    folder = quantized / "validate" / "w6a6"
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for words in ("The same tokens given to both", "Images of the same seeds", "Perplexity"):
        assert words in page and words in markdown
    gates, sites = ElementTree.parse(folder / "junit.xml").getroot()
    assert (gates.get("name"), gates.get("tests")) == ("gates", "2") and len(sites) > 0
    assert [g["passed"] for g in report["gates"]] == [True, True]
    assert len(list((folder / "samples").glob("*.png"))) == 3 * SAMPLES


def test_a_report_says_whether_its_calibration_was_enough(
    quantized: Path, report: dict[str, Any]
) -> None:
    results = json.loads((quantized / "calibrate" / MANIFEST).read_text())["results"]
    grown = results["convergence"]
    assert report["calibration"] == {
        "samples": 5,
        "enough": grown["enough"],
        "settled": grown["settled"],
        "inputs": len(grown["sites"]),
        "share": grown["share"],
        "dgc": None,
        "classes": [0, 1, 2, 3, 4],
    }
    page = (quantized / "validate" / "w6a6" / "report.md").read_text()
    settled = f"ranges of {grown['settled']} of {len(grown['sites'])} layer inputs had settled"
    assert "Calibration classes, 5: 0-4." in page
    assert "They are of 5 classes, 0 of which calibration has not seen: 0-4." in page
    assert "Calibration images: 5." in page and "Attention products" not in page
    assert (settled in page) is (grown["enough"] is not None)


def test_what_did_not_change_is_not_measured_again(quantized: Path, report: dict[str, Any]) -> None:
    gates = ("--gate", "kl<=1", "--gate", "qdq.token_agreement>=0")
    outcome = validate(quantized, *gates, "--json")
    (stage,) = json.loads(outcome.out)["stages"]
    assert stage["skipped"] is True
    assert (
        stage["manifest"]["results"]["metrics"]["kl"] == report["generation"]["qdq"]["logits"]["kl"]
    )


def test_a_failed_gate_exits_with_8_and_leaves_the_report(quantized: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(quantized, copy)
    outcome = validate(copy, "--gate", "logits_sqnr_db>=200", "--samples", 2)
    assert_gate_failed(outcome, "logits_sqnr_db", "failed")
    assert report_of(copy)["gates"][0]["passed"] is False


def test_images_are_given_as_tokens_with_a_class_each(quantized: Path, tmp_path: Path) -> None:
    copy, images = tmp_path / "ws", tmp_path / "images"
    shutil.copytree(quantized, copy)
    images.mkdir()
    rng = np.random.default_rng(5)
    pixels = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(3)]
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{k}.png")
    outcome = validate(copy, "--images", images, "--labels", "4,0,2", "--samples", 2)
    assert outcome.code == 0, outcome
    found = report_of(copy)
    assert found["data"]["validation"] == ["0.png", "1.png", "2.png"]
    assert len(found["data"]["pictures"]) == 2
    tokenizer = ImageTokenizer.open(copy)
    tokens = np.concatenate([tokenizer.encode(to_model(p))[0].reshape(1, -1) for p in pixels])
    chances = probabilities(logits_of(copy / "export", np.array([4, 0, 2]), tokens))
    taken = np.take_along_axis(chances, tokens[..., None], axis=-1)
    entropy = found["generation"]["qdq"]["logits"]["cross_entropy_fp32"]
    assert entropy == pytest.approx(-np.log(taken).mean(), rel=1e-5)


def feature_network(path: Path, outputs: int = 1) -> Path:
    """Mean colour, from uint8 pictures [N, 3, H, W]."""
    names = [f"y{k}" for k in range(outputs)]
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("ReduceMean", ["f", "axes"], [n], keepdims=0) for n in names]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 3, None, None])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 3]) for n in names],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])],
    )
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_features_of_a_users_network_are_a_distance_of_their_own(
    quantized: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(quantized, copy)
    network = feature_network(tmp_path / "colour.onnx")
    outcome = validate(copy, "--features", network, "--gate", "frechet_features>=0")
    assert outcome.code == 0, outcome
    sets = [
        Generator.open(folder, session=reference_session)
        .generate(labels_of(report_of(copy)), seed=SEED)
        .images.mean(axis=(1, 2))
        for folder in (copy, copy / "quantize" / "w6a6")
    ]
    row = report_of(copy)["generation"]["qdq"]["pictures"]["frechet"][1]
    assert row["distance"] == pytest.approx(frechet_distance(*sets), rel=1e-4)
    assert row["key"] == "frechet_features" and "colour.onnx" in row["features"]


def test_an_engine_is_opened_once_and_timed_as_it_made_the_images(
    quantized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one would take its memory twice; FP32 is opened again, as fast as the engine."""
    opened, open_real = [], Generator.open

    def watched(folder: Path, **options: Any) -> Generator:
        opened.append((folder, "session" in options))
        return open_real(folder, **options)

    monkeypatch.setattr(Generator, "open", watched)
    model = Exported.open(Workspace(quantized))
    options = ValidateOptions(samples=2, rounds=2, warmup=0, threads=1)
    graphs = quantized / "quantize" / "w6a6"
    folders = {QDQ: graphs, ENGINE: graphs}
    found = GeneratorMeasurement.open(model, options).run(folders, lambda *_: None)
    assert opened.count((graphs, False)) == 1
    assert opened.count((quantized / "export", False)) == 1
    assert {part: row.engine.n for part, row in found.latency.items()} == {
        "total": 2,
        "tokens": 2,
        "decoder": 2,
    }


def test_the_seed_of_the_calibration_is_warned_of(quantized: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(quantized, copy)
    outcome = validate(copy, "--seed", 0, "--samples", 2)
    assert outcome.code == 0
    assert "validated on calibration images: generated from seed 0" in outcome.err


def test_reports_of_generators_are_compared(
    quantized: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    worse = tmp_path / "worse.json"
    changed = json.loads(json.dumps(report))
    logits = changed["generation"]["qdq"]["logits"]
    logits["kl"] *= 2
    logits["sums"]["divergence"] = [2 * each for each in logits["sums"]["divergence"]]
    worse.write_text(json.dumps(changed))
    base = quantized / "validate" / "w6a6" / "report.json"
    assert arvg("compare", base, base).code == 0
    outcome = arvg("compare", base, worse)
    assert outcome.code == 8 and "Divergence of the logits" in outcome.out, outcome
    changed["data"]["sampling"]["cfg"] = 1.0
    worse.write_text(json.dumps(changed))
    assert_refused(arvg("compare", base, worse), 7, "other sampling")


@pytest.mark.usefixtures("one_process")
def test_run_follows_a_recipe_of_a_generator_and_resumes(
    quantized: Path, tiny_rar: TinyRar, tmp_path: Path
) -> None:
    copy, recipe = tmp_path / "ws", tmp_path / "rar.toml"
    shutil.copytree(quantized, copy)
    shutil.rmtree(copy / "validate", ignore_errors=True)
    recipe.write_text(
        f"""
        schema = "arvg-trt/recipe/v1"
        model = "rar"
        checkpoint = "{tiny_rar.workspace.parent / "checkpoint"}"
        workspace = "{copy}"
        name = "w6a6"
        build = []
        [calibrate]
        samples = 5
        batch_size = 5
        [quantize]
        weight_bits = 6
        activation_bits = 6
        smoothing = "search"
        rounding = "gptq"
        [validate]
        samples = 2
        rounds = 0
        gates = ["kl<=1"]
        """
    )
    # The parity check has other photographs than the fixture's: exported again, to the same bytes.
    assert skipped_twice(recipe) == [False, True, True, False]
    outcome = arvg("run", recipe)
    assert "likeliest token equal" in outcome.out and "tokens equal" in outcome.out, outcome
    assert "Fréchet distance to FP32's images " in outcome.out
    assert " on latent (two sets of FP32 images: " in outcome.out


@pytest.mark.parametrize(
    ("code", "words", "args"),
    [
        (9, "quantize", ("--name", "absent")),
        (3, "there is no metric 'klx'", ("--gate", "klx<=1")),
        (5, "a generator takes what it generates, or images", ("--feeds", "x.npz")),
        (10, "label out of range: 5", ("--labels", "3,5")),
        (10, "is neither a class", ("--labels", "cat")),
        (5, "7 images without classes", ("--images", "skimage")),
        (5, "2 classes for 7 images", ("--images", "skimage", "--labels", "0,1")),
        (10, "label out of range: 9", ("--images", "skimage", "--labels", "9")),
        (5, "no such feature network", ("--features", "absent.onnx")),
        (3, "samples must be at least 1", ("--samples", 0)),
    ],
)
def test_what_a_generator_cannot_be_validated_on_is_refused(
    quantized: Path, code: int, words: str, args: tuple[object, ...]
) -> None:
    outcome = validate(quantized, *args)
    assert_refused(outcome, code, words)


def test_images_smaller_than_the_pictures_are_refused(quantized: Path, tmp_path: Path) -> None:
    for name, side in (("a", 8), ("b", 7)):
        image = np.random.default_rng(side).integers(0, 256, (9, side, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    outcome = validate(quantized, "--images", tmp_path, "--labels", "1")
    assert_refused(outcome, 5, "smaller than the 8x8 pixels that the model makes: b.png 7x9")


def test_a_feature_network_of_another_form_is_refused(quantized: Path, tmp_path: Path) -> None:
    network = feature_network(tmp_path / "two.onnx", outputs=2)
    outcome = validate(quantized, "--features", network)
    assert_refused(outcome, 3, "and none of them is called pool")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("tokenizer", "labels", "only a generator takes labels"),
        ("custom", "labels", "only an image generator or tokenizer takes labels"),
        ("custom", "features", "only an image generator or tokenizer takes features"),
        ("custom", "lpips", "only an image generator or tokenizer takes lpips"),
    ],
)
def test_what_other_kinds_of_models_take_is_refused(kind: Any, name: str, words: str) -> None:
    with pytest.raises(CalibrationError, match=words) as refusal:
        check_kind(kind, ValidateOptions(**{name: "1"}))
    assert refusal.value.where == f"--{name}"
