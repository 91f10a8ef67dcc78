"""Where samples come from: DGC, the user's images and arrays, and samples that were saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arvg_trt.calibrate.dgc_files import require_conditions
from arvg_trt.errors import CalibrationError
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.runtime.folders import read_spec
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.samples.files import load_sample, sample_files, save_sample
from arvg_trt.samples.saved import Origin, open_saved, origin_of, saved_sample
from arvg_trt.samples.sources import tokenizer_images
from arvg_trt.workspace.facts import Exported
from arvg_trt.workspace.manifest import MANIFEST, Manifest

from ..command_line import arvg, assert_refused, digests, pictures
from ..families.rar.models import TinyRar
from ..validate.diagnose.network import write_feeds


@pytest.fixture(scope="module")
def pool(tiny_rar: TinyRar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose saved samples are twelve pictures."""
    root = tmp_path_factory.mktemp("pool") / "ws"
    shutil.copytree(tiny_rar.workspace, root)
    assert arvg("calibrate", root, "--samples", 12, "--batch-size", 8).code == 0
    return root


@pytest.fixture
def copy(pool: Path, tmp_path: Path) -> Path:
    shutil.copytree(pool, tmp_path / "ws")
    return tmp_path / "ws"


def rows_of(workspace: Path) -> list[dict[str, np.ndarray]]:
    return [load_sample(path) for path in sample_files(workspace / "calibrate" / "samples")]


def manifest_of(workspace: Path) -> dict:
    return json.loads((workspace / "calibrate" / MANIFEST).read_text())


def labels_of(workspace: Path) -> list[int]:
    return [int(row["labels"][0]) for row in rows_of(workspace)]


def test_dgc_keeps_rows_of_more_candidates_and_says_their_ratio(pool: Path, copy: Path) -> None:
    outcome = arvg("calibrate", copy, "--samples", 6, "--batch-size", 8, "--dgc")
    assert outcome.code == 0, outcome
    assert outcome.err.startswith("warning: 24 candidates are too few for the covariance of 32")
    results = manifest_of(copy)["results"]
    told, labels = results["dgc"], labels_of(copy)
    assert results["samples"] == 6 and len(labels) == 12
    assert told["candidates"] == 24 and told["kept"] == 12 and told["select"] == "ratio"
    assert told["conditional_share"] == np.mean([label != 5 for label in labels])
    # A causal model's first token sees the class alone: null rows are all one.
    assert told["median_distance"]["null"] == 0 and told["conditional_share"] == 1
    first = [row for row in rows_of(pool) if row["labels"][0] != 5]
    for found, wanted in zip(rows_of(copy), first, strict=True):
        assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert arvg("quantize", copy, "--name", "chosen", "--attention", "int8").code == 0
    outcome = arvg("validate", copy, "--name", "chosen", "--samples", 2, "--rounds", 0)
    assert outcome.code == 0, outcome
    told = (copy / "validate" / "chosen" / "report.md").read_text()
    assert "Calibration rows: 12 of 24, chosen by DGC (ratio), 100 % of them with a class." in told
    assert "operands in INT8 per-tensor, rounded at" in told
    assert "No engine was built that shows its kernels." in told


def test_dgc_of_saved_candidates_is_dgc_of_made_ones(pool: Path, copy: Path) -> None:
    options = ("--samples", 6, "--batch-size", 8, "--dgc", "--dgc-select", "distance")
    assert arvg("calibrate", copy, *options).code == 0
    made = [path.read_bytes() for path in sample_files(copy / "calibrate" / "samples")]
    told = manifest_of(copy)["results"]["dgc"]
    assert arvg("calibrate", copy, *options, "--samples-from", pool).code == 0
    assert made == [path.read_bytes() for path in sample_files(copy / "calibrate" / "samples")]
    assert told == manifest_of(copy)["results"]["dgc"]


def test_saved_samples_give_the_same_statistics(pool: Path, copy: Path) -> None:
    options = ("--samples-from", pool / "calibrate", "--batch-size", 8)
    assert arvg("calibrate", copy, *options).code == 0
    assert digests(copy / "calibrate" / "samples") == digests(pool / "calibrate" / "samples")
    name = "statistics.safetensors"
    assert (copy / "calibrate" / name).read_bytes() == (pool / "calibrate" / name).read_bytes()
    assert manifest_of(copy)["results"]["images"] == ["generated from seed 0"]
    assert "up to date" in arvg("calibrate", copy, *options).out


def test_images_become_rows_by_the_generators_own_tokenizer(
    tiny_rar: TinyRar, tmp_path: Path
) -> None:
    spec = read_spec(tiny_rar.workspace)[1]
    root, images = tmp_path / "ws", pictures(tmp_path / "images", 3, spec.image_size)
    shutil.copytree(tiny_rar.workspace, root)
    outcome = arvg("calibrate", root, "--images", images, "--labels", "2,0,1", "--samples", 3)
    assert outcome.code == 0, outcome
    null = spec.num_classes
    assert labels_of(root) == [2, null, 0, null, 1, null]
    tokenizer = ImageTokenizer.open(tiny_rar.folder)
    for k in range(3):
        pixels = np.asarray(Image.open(images / f"{k}.png"), np.float32).transpose(2, 0, 1)
        tokens = tokenizer.encode(pixels[None] / 127.5 - 1)[0].reshape(-1)
        for row in rows_of(root)[2 * k : 2 * k + 2]:
            assert np.array_equal(row["tokens"][0], tokens[: row["tokens"].shape[1]])
    results = manifest_of(root)["results"]
    assert results["images"] == ["0.png", "1.png", "2.png"] and results["samples"] == 3


def test_what_images_of_a_generator_lack_is_refused(copy: Path, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images", 3, 8)
    before = digests(copy)
    for args, code, words in (
        (("--images", images), 5, "--labels: 3 images without classes"),
        (("--images", images, "--labels", "0,1"), 5, "2 classes for 3 images"),
        (("--images", images, "--labels", "7"), 10, "7"),
    ):
        assert_refused(arvg("calibrate", copy, *args), code, words)
    assert digests(copy) == before


def test_dgc_without_a_choice_or_a_condition_is_refused(copy: Path, pool: Path) -> None:
    for args, code, words in (
        (("--candidates", 9), 3, "set dgc"),
        (("--dgc", "--samples", 8, "--candidates", 7), 3, "8 samples of 7 candidates"),
        (("--dgc", "--shard", "1/2"), 3, "dgc chooses among all candidates"),
        (("--dgc", "--executor", "processes"), 3, "--executor: the samples are chosen"),
        (("--dgc", "--samples", 13, "--samples-from", pool), 5, "26 rows cannot be chosen of 24"),
        (("--dgc", "--samples", 1, "--candidates", 1), 5, "too few for a covariance"),
    ):
        assert_refused(arvg("calibrate", copy, *args), code, words)
    outputs = {"encoder.onnx": "", "full.onnx": ""}
    exported = Manifest(stage="export", inputs={}, options={}, versions={}, outputs=outputs)
    with pytest.raises(CalibrationError, match="which only a generator has"):
        require_conditions(Exported(Path("absent"), exported))


def test_samples_that_do_not_fit_are_refused_by_file(
    pool: Path, copy: Path, tmp_path: Path
) -> None:
    good = load_sample(sample_files(pool / "calibrate" / "samples")[0])

    def saved(name: str, **changes: np.ndarray) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        row = {key: value for key, value in (good | changes).items() if value is not None}
        save_sample(row, folder, 0)
        return folder

    picture = pictures(tmp_path / "pictures", 1, 8)
    (tmp_path / "none").mkdir()
    torn = saved("torn")
    (torn / "00000.safetensors").write_bytes(b"torn")
    for folder, words in (
        (tmp_path / "none", "holds no saved samples"),
        (tmp_path / "absent", "holds no saved samples"),
        (saved("other", x=np.zeros(1, np.float32)), "x is no input to feed"),
        (saved("lacking", tokens=None), "has no array for full/tokens"),
        (saved("long", tokens=np.zeros((1, 99), np.int64)), "has shape [1, 99]"),
        (saved("float", tokens=good["tokens"].astype(np.float32)), "is float32"),
        (saved("label", labels=np.array([6])), "label 6, but the classes are 0 to 4"),
        (picture, "is a picture, which no input takes"),
        (torn, "cannot be read"),
    ):
        outcome = arvg("calibrate", copy, "--samples-from", folder)
        assert_refused(outcome, 5, str(folder), words)
    given = ("--samples-from", pool, "--labels", "1")
    assert_refused(arvg("calibrate", copy, *given), 3, "samples_from and labels exclude")


def test_saved_pictures_serve_a_tokenizer_and_rows_do_not(pool: Path, tmp_path: Path) -> None:
    exported = Manifest(
        stage="export",
        inputs={},
        options={"model": "tiny"},
        versions={},
        results={"tokenizer": {"stride": 8, "discrete": True, "latent_channels": 4}},
    )
    folder = pictures(tmp_path / "pictures", 2, 64)
    assert [p.name for p in open_saved(tmp_path, exported, folder)] == ["0.png", "1.png"]
    assert saved_sample(folder / "1.png").shape == (64, 64, 3)
    assert origin_of(folder) == Origin(images=("saved samples of pictures",))
    with pytest.raises(CalibrationError, match="is no picture"):
        open_saved(tmp_path, exported, pool)
    odd = pictures(tmp_path / "odd", 1, 60)
    with pytest.raises(CalibrationError, match=r"0\.png.*stride 8"):
        open_saved(tmp_path, exported, odd)


def test_samples_mean_the_same_to_every_command(copied: Path) -> None:
    """The first so many; all where nobody says it; and no fewer than were asked for."""
    workspace, held = copied / "ws", write_feeds(copied / "twelve.npz", 1, 12)
    validate = ("validate", workspace, "--name", "plain", "--feeds", held, "--rounds", 0)
    calibrate = ("calibrate", workspace, "--feeds", held)
    diagnose = ("diagnose", workspace, "--name", "plain", "--feeds", held, "-o", copied / "d")

    def validated(*more: object) -> list[str]:
        outcome = arvg(*validate, *more, "--json")
        assert outcome.code == 0, outcome
        options: dict[str, list[str]] = json.loads(outcome.out)["stages"][-1]["manifest"]["options"]
        return options["images"]

    assert validated("--samples", 3) == ["twelve:0", "twelve:1", "twelve:2"]
    assert len(validated()) == 12
    for command in (validate, diagnose, calibrate):
        refused = arvg(*command, "--samples", 36)
        assert_refused(refused, 5, "holds 12 samples, 36 were asked for", "--samples 12")
    outcome = arvg(*calibrate)
    assert outcome.code == 0 and "calibrated on all 12 samples that are given" in outcome.err
    few = arvg(*calibrate, "--samples", 5)
    assert few.code == 0 and "calibrated on all" not in few.err
    manifest = json.loads((workspace / "calibrate" / "manifest.json").read_text())
    assert manifest["results"]["samples"] == 5


def test_no_fewer_images_than_were_asked_for(tmp_path: Path) -> None:
    folder = str(pictures(tmp_path / "images", 3, 24))
    for samples, count in ((None, 3), (2, 2), (3, 3)):
        found = tokenizer_images(ValidateOptions(images=folder, samples=samples))
        assert found is not None and len(found.files) == count
    with pytest.raises(CalibrationError, match="holds 3 samples, 4 were asked for"):
        tokenizer_images(ValidateOptions(images=folder, samples=4))
    # Crops for calibration are drawn without end.
    assert tokenizer_images(CalibrateOptions(images=folder, samples=4)) is not None
