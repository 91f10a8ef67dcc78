"""Quality of reconstructions on tiny codecs and networks whose values are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvg_trt.errors import AccuracyError, CalibrationError, RecipeError
from arvg_trt.recipe.validate import ValidateOptions
from arvg_trt.validate.measure.tokenizer_accuracy import CandidateAccuracy, measure
from arvg_trt.validate.metrics.frechet import frechet_distance
from arvg_trt.validate.metrics.image import to_float, to_uint8
from arvg_trt.validate.quality.open import check_networks, open_feature_network, open_pair_network
from arvg_trt.validate.quality.reconstruction import QUALITY_METRICS, QualityMeter, open_pairs

from ..conftest import LEVELS, GreyCodec, make_images
from ..networks_of_tests import colour_network, difference_network, saved


def measured(meter: QualityMeter, candidate: GreyCodec) -> CandidateAccuracy:
    measure(
        make_images(),
        GreyCodec(),
        {"engine": candidate},
        codebook_size=LEVELS,
        keep_images=0,
        progress=lambda done: None,
        meter=meter,
    )
    found, _ = measure(
        make_images(),
        GreyCodec(),
        {"engine": candidate},
        codebook_size=LEVELS,
        keep_images=0,
        progress=lambda done: None,
    )
    from msgspec.structs import replace

    return replace(found["engine"], quality=meter.results()["engine"])


def values(accuracy: CandidateAccuracy) -> dict[str, float | None]:
    return {name: read(accuracy) for name, read in QUALITY_METRICS.items()}


def test_every_figure_is_that_of_the_images(tmp_path: Path) -> None:
    network = open_feature_network(colour_network(tmp_path / "colour.onnx"), 32, 1)
    pair = difference_network(tmp_path / "difference.onnx")
    pairs = open_pairs(ValidateOptions(lpips=str(pair), threads=1), 32)
    candidate = GreyCodec(offset=0.05, gain=0.97)
    accuracy = measured(QualityMeter(["engine"], pairs, network, LEVELS), candidate)
    quality, found = accuracy.quality, values(accuracy)

    originals = [image for _, image in make_images()]
    made: dict[str, list[np.ndarray]] = {"fp32": [], "own": []}
    tokens: list[np.ndarray] = []
    for image in originals:
        for name, codec in (("fp32", GreyCodec()), ("own", candidate)):
            indices, _ = codec.encode(to_float(image))
            assert indices is not None
            made[name].append(to_uint8(codec.decode(indices)))
            if name == "own":
                tokens.append(indices)

    def gaps(a: list[np.ndarray], b: list[np.ndarray]) -> list[float]:
        return [float(np.abs(to_float(x) - to_float(y)).mean()) for x, y in zip(a, b, strict=True)]

    def colours(images: list[np.ndarray]) -> np.ndarray:
        return np.stack([image.mean(axis=(0, 1)) for image in images])

    lpips = quality.pairs["lpips"]
    assert lpips.original.each == pytest.approx(gaps(originals, made["own"]), rel=1e-5)
    assert lpips.reference.each == pytest.approx(gaps(originals, made["fp32"]), rel=1e-5)
    assert found["lpips_vs_fp32"] == pytest.approx(
        np.mean(gaps(made["fp32"], made["own"])), rel=1e-5
    )
    assert quality.rfid is not None and quality.rfid.images == len(originals)
    wanted = [frechet_distance(colours(originals), colours(made[n])) for n in ("own", "fp32")]
    assert found["rfid"] == pytest.approx(wanted[0], rel=1e-4)
    assert found["rfid_rise"] == pytest.approx(wanted[0] - wanted[1], rel=1e-3)
    counts = np.bincount(np.concatenate([t.ravel() for t in tokens]))
    shares = counts[counts > 0] / counts.sum()
    assert found["codebook_perplexity"] == pytest.approx(
        np.exp(-(shares * np.log(shares)).sum()), rel=1e-12
    )
    assert found["ms_ssim"] is None and found["dists"] is None  # images too small; no network


def test_one_image_and_no_network_leave_rfid_and_lpips_unmeasured(tmp_path: Path) -> None:
    network = open_feature_network(colour_network(tmp_path / "colour.onnx"), 32, 1)
    meter = QualityMeter(["engine"], {}, network, None)
    _, image = next(iter(make_images()))
    meter.add(image, (image, None), {"engine": (image, None)})
    found = meter.results()["engine"]
    assert found.rfid is None and found.codebook is None and not found.pairs


def test_constant_pictures_have_infinite_psnr_and_finite_quality(tmp_path: Path) -> None:
    pair = difference_network(tmp_path / "difference.onnx")
    pairs = open_pairs(ValidateOptions(lpips=str(pair), threads=1), 192)
    network = open_feature_network(colour_network(tmp_path / "colour.onnx"), 192, 1)
    meter = QualityMeter(["engine"], pairs, network, None)
    grey = np.full((192, 192, 3), 9, np.uint8)
    for _ in range(3):
        meter.add(grey, (grey, None), {"engine": (grey, None)})
    found = meter.results()["engine"]
    assert found.rfid is not None and found.rfid.value == 0
    assert found.pairs["lpips"].original.mean == 0
    assert found.pairs["ms_ssim"].vs_fp32.mean == pytest.approx(1)


def test_a_network_that_gives_no_number_is_refused(tmp_path: Path) -> None:
    path = difference_network(tmp_path / "broken.onnx", scale=3e38)
    network = open_pair_network(path, "--lpips", 8, 1)
    black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    with pytest.raises(AccuracyError, match="not finite") as refusal:
        network.distance(black, white)
    assert refusal.value.where == f"--lpips {path}"


@pytest.mark.parametrize("name", ["features", "lpips", "dists"])
def test_networks_that_are_absent_or_of_another_form_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CalibrationError, match="no such") as absent:
        check_networks(ValidateOptions(**{name: "absent.onnx"}))
    assert absent.value.where == f"--{name} absent.onnx"
    wrong = difference_network(tmp_path / "net.onnx")
    if name != "features":
        wrong = colour_network(tmp_path / "net.onnx")
    with pytest.raises(RecipeError, match="inputs") as refusal:
        QualityMeter.open(["qdq"], ValidateOptions(**{name: str(wrong)}), None)
    assert refusal.value.where == f"--{name} {wrong}"


def test_several_outputs_need_the_names_of_features(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "two.onnx",
        """g (uint8[N,3,H,W] x) => (float[N,3] a, float[N,3,H,W] b)
        <int64[2] axes = {2, 3}>
        { b = Cast<to = 1>(x) a = ReduceMean<keepdims = 0>(b, axes) }""",
    )
    with pytest.raises(RecipeError, match="outputs a, b, and none of them is called pool"):
        open_feature_network(path, 8, 1)
    network = open_feature_network(colour_network(tmp_path / "colour.onnx"), 8, 1)
    assert network.widths == {"pool": 3, "spatial": 3} and network.title == "colour.onnx, [N, 3]"
