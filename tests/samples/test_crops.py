"""Sources of an image tokenizer's samples, and which options each kind of model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvg_trt.errors import CalibrationError
from arvg_trt.recipe.calibrate import CalibrateOptions
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.runtime.images import center_crop
from arvg_trt.samples.crops import Crops, Noise
from arvg_trt.samples.generated import GeneratedSamples
from arvg_trt.samples.images import ImageSource, open_source
from arvg_trt.samples.sources import check_options
from arvg_trt.validate.measure.kinds import check_validation, leaked
from arvg_trt.workspace.files import sha256_file

from ..command_line import pictures


@pytest.fixture
def images(tmp_path: Path) -> ImageSource:
    return open_source(str(pictures(tmp_path / "images", 3, 24)))


def silent(task: str, done: int, total: int) -> None:
    pass


def test_a_part_of_the_crops_is_that_part_of_all(images: ImageSource) -> None:
    whole, part = (Crops(images, 8, r, seed=3) for r in (range(7), range(2, 5)))
    found = list(whole.samples(silent))
    assert [crop.shape for crop in found] == [(8, 8, 3)] * 7
    assert np.array_equal(list(part.samples(silent)), found[2:5])
    assert (whole.count, part.count) == (7, 3)
    assert part.sample_names == ("2.png", "0.png", "1.png") == whole.sample_names[2:5]


def test_both_stages_call_an_image_alike_and_have_its_digest(images: ImageSource) -> None:
    random, centres = Crops(images, 8, range(4), seed=0), Crops(images, 8, range(3))
    assert random.names == centres.names == ("0.png", "1.png", "2.png")
    assert centres.digests == {path.name: sha256_file(path) for path in images.files}
    for k, crop in enumerate(centres.samples(silent)):
        assert np.array_equal(crop, center_crop(images.load(k), 8))
    assert leaked([centres], ["1.png", "generated from seed 0"]) == ["1.png"]


def test_progress_counts_the_samples_of_the_part(images: ImageSource) -> None:
    told: list[tuple[str, int, int]] = []
    for source in (Crops(images, 8, range(5, 7), seed=0), Noise(8, range(1, 3), 0)):
        list(source.samples(lambda *step: told.append(step)))
    assert told == [("samples", 1, 2), ("samples", 2, 2)] * 2


def test_noise_has_no_names_and_says_what_it_is() -> None:
    noise = Noise(4, range(2), 1)
    assert noise.synthetic and noise.names == () == noise.sample_names and not noise.digests


def test_images_that_a_generator_makes_are_known_by_their_seed(tmp_path: Path) -> None:
    spec = object()  # which no name depends on
    seen, same = (
        GeneratedSamples(tmp_path, spec, labels, 7, first=first)  # type: ignore[arg-type]
        for labels, first in (((1, 2), 0), ((4,), 5))
    )
    assert leaked([same], seen.names) == ["generated from seed 7"]
    assert same.image_names == ("seed 7, picture 5, class 4",)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("tokenizer", CalibrateOptions(), "no calibration images"),
        ("tokenizer", ValidateOptions(), "no validation images"),
        ("tokenizer", CalibrateOptions(feeds="a.npz"), "an image tokenizer takes images"),
        ("tokenizer", CalibrateOptions(labels="1"), "only a generator takes labels"),
        (
            "custom",
            ValidateOptions(features="f.onnx"),
            "only an image generator or tokenizer takes features",
        ),
        ("generator", CalibrateOptions(synthetic=True), "a generator takes what it generates"),
        ("generator", ValidateOptions(feeds="a.npz"), "a generator takes what it generates"),
        ("generator", ValidateOptions(images="absent"), "no such folder"),
    ],
)
def test_options_are_refused_before_there_is_a_model(
    kind: str, options: CalibrateOptions | ValidateOptions, words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        check_options(kind, options)  # type: ignore[arg-type]


def test_saved_samples_need_no_images_and_a_network_has_to_be_there(tmp_path: Path) -> None:
    check_options("tokenizer", CalibrateOptions(samples_from="out/ws"))
    check_options("tokenizer", CalibrateOptions(synthetic=True))
    absent = ValidateOptions(features=str(tmp_path / "absent.onnx"))
    with pytest.raises(CalibrationError, match="no such feature network"):
        check_validation("generator", absent)
