"""Images and references as the ADM evaluator has them: read, measured, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arvg_trt.validate.metrics.frechet import frechet_distance, gaussian_distance
from arvg_trt.validate.metrics.moments import Gaussian

from ...command_line import arvg, assert_refused
from .test_run import colour_network

RNG = np.random.default_rng(5)
OWN = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
THEIRS = RNG.integers(0, 200, (30, 8, 8, 3), dtype=np.uint8)


def pool(images: np.ndarray) -> np.ndarray:
    """The features of the network: colours of an image's quarters."""
    cut = images.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4))
    return cut.transpose(0, 3, 1, 2).reshape(-1, 12)


def measured(tmp_path: Path, own: np.ndarray, **reference: Any) -> dict[str, Any]:
    network = colour_network(tmp_path / "colour.onnx")
    np.savez(tmp_path / "own.npz", arr_0=own)
    np.savez(tmp_path / "reference.npz", **reference)
    args = ("--features", network, "--reference", tmp_path / "reference.npz", "--json")
    outcome = arvg("evaluate", tmp_path / "own.npz", *args)
    assert outcome.code == 0, outcome
    found: dict[str, Any] = json.loads(outcome.out)["distribution"]
    return found


def test_statistics_of_a_reference_are_taken_as_they_are(tmp_path: Path) -> None:
    """The evaluator takes mu and sigma for FID, the images for precision and recall."""
    given = {"mu": np.arange(12.0), "sigma": np.eye(12) * 30}
    spatial = {"mu_s": np.zeros(12), "sigma_s": np.eye(12)}
    found = measured(tmp_path, OWN, arr_0=THEIRS, **given, **spatial)
    own = Gaussian(pool(OWN).mean(axis=0), np.cov(pool(OWN), rowvar=False))
    wanted = gaussian_distance(own, Gaussian(given["mu"], given["sigma"]))
    assert found["fid"] == pytest.approx(wanted, rel=1e-5)
    twice = Gaussian(2 * own.mean, 4 * own.covariance)
    wanted = gaussian_distance(twice, Gaussian(spatial["mu_s"], spatial["sigma_s"]))
    assert found["sfid"] == pytest.approx(wanted, rel=1e-5)
    assert (found["images"], found["reference_images"]) == (40, 30)
    assert found["precision"] is not None and found["kid"]["subset"] == 30


def test_a_folder_of_images_is_a_set_and_a_reference(tmp_path: Path) -> None:
    for name, images in (("own", OWN), ("theirs", THEIRS)):
        (tmp_path / name).mkdir()
        for k, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{k:03d}.png")
    args = ("--features", colour_network(tmp_path / "colour.onnx"), "--json")
    outcome = arvg("evaluate", tmp_path / "own", "--reference", tmp_path / "theirs", *args)
    assert outcome.code == 0, outcome
    found = json.loads(outcome.out)["distribution"]
    assert found["fid"] == pytest.approx(frechet_distance(pool(OWN), pool(THEIRS)), rel=1e-5)
    lines = arvg("evaluate", tmp_path / "own", *args[:2])
    assert "Inception score" in lines.out and "there is no reference" in lines.out


def test_statistics_alone_give_no_precision_and_say_so(tmp_path: Path) -> None:
    found = measured(tmp_path, OWN, mu=np.zeros(12), sigma=np.eye(12))
    assert found["fid"] > 0 and found["sfid"] is None and found["precision"] is None
    notes = " ".join(found["notes"])
    assert "no statistics of spatial, which sFID needs" in notes
    assert "no images, which precision, recall and KID need" in notes


def test_fewer_images_than_features_are_said_to_bias_fid(tmp_path: Path) -> None:
    found = measured(tmp_path, OWN[:9], arr_0=THEIRS)
    assert any("FID of 9 images on 12 features is biased upward" in n for n in found["notes"])


def test_a_reference_of_other_sides_is_measured_and_said(tmp_path: Path) -> None:
    """FID's network takes all images to one size; this one leaves out a ninth row."""
    taller = np.pad(THEIRS, ((0, 0), (0, 1), (0, 0), (0, 0)))
    found = measured(tmp_path, OWN, arr_0=taller)
    assert "the reference's images are 9x8, these are 8x8" in found["notes"]
    same = measured(tmp_path, OWN, arr_0=THEIRS)
    assert found["fid"] == pytest.approx(same["fid"], rel=1e-6)
    assert not any("images are" in note for note in same["notes"])


def test_constant_images_have_figures(tmp_path: Path) -> None:
    found = measured(tmp_path, np.full((6, 8, 8, 3), 7, np.uint8), arr_0=THEIRS)
    assert found["inception_score"] == pytest.approx(1) and found["precision"] == 0
    assert found["fid"] == pytest.approx(
        frechet_distance(pool(np.full((6, 8, 8, 3), 7, np.uint8)), pool(THEIRS)), rel=1e-5
    )


@pytest.mark.parametrize(
    ("code", "words", "reference"),
    [
        (5, "mu is [7], where pool of colour.onnx has [12]", {"mu": np.zeros(7)}),
        (5, "sigma is missing", {"mu": np.zeros(12)}),
        (
            5,
            "sigma has values that are not",
            {"mu": np.zeros(12), "sigma": np.full((12, 12), np.nan)},
        ),
        (5, "arr_0 is float32 [4, 8, 8, 3]", {"arr_0": np.zeros((4, 8, 8, 3), np.float32)}),
        (5, "has neither images nor statistics, but x", {"x": np.zeros(2)}),
    ],
)
def test_references_that_cannot_be_used_are_named(
    tmp_path: Path, code: int, words: str, reference: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "own.npz", arr_0=OWN)
    np.savez(tmp_path / "reference.npz", **reference)
    network = colour_network(tmp_path / "colour.onnx")
    outcome = arvg(
        *("evaluate", tmp_path / "own.npz", "--features", network),
        *("--reference", tmp_path / "reference.npz"),
    )
    assert_refused(outcome, code, words)


def test_sets_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    network = colour_network(tmp_path / "colour.onnx")

    def outcome(**arrays: np.ndarray) -> Any:
        np.savez(tmp_path / "own.npz", **arrays)
        return arvg("evaluate", tmp_path / "own.npz", "--features", network)

    assert_refused(outcome(arr_0=OWN[:1]), 8, "1 image is no set of images")
    assert_refused(arvg("evaluate", tmp_path / "own.npz"), 3, "nothing is measured without")
    assert_refused(outcome(tokens=OWN), 5, "has no images arr_0")
    (tmp_path / "own.npz").write_text("no archive")
    refused = arvg("evaluate", tmp_path / "own.npz", "--features", network)
    assert_refused(refused, 5, "is not a .npz of arrays")
    (tmp_path / "two").mkdir()
    for k, side in enumerate((8, 16)):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"two/{k}.png")
    refused = arvg("evaluate", tmp_path / "two", "--features", network)
    assert_refused(refused, 5, "is 16x16, the images before it are 8x8")
