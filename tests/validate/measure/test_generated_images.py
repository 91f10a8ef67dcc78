"""Pictures and tokens of two makers, compared."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from arvg_trt.errors import AccuracyError
from arvg_trt.numerics.noise import sqnr_db
from arvg_trt.validate.measure.generated_images import Batch, Features, measure_generated_images
from arvg_trt.validate.measure.generator_accuracy import GeneratorAccuracy, generation_metrics
from arvg_trt.validate.metrics.frechet import frechet_distance
from arvg_trt.validate.metrics.image import psnr

NAMES = tuple(f"seed 1, picture {k}, class 0" for k in range(5))
MEAN = Features("frechet_latent", "mean colour", lambda images: images.mean(axis=(1, 2)))


def pictures(seed: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (5, side, side, 3), dtype=np.uint8)


def cut(images: np.ndarray, tokens: np.ndarray, size: int = 2) -> Iterator[Batch]:
    for start in range(0, len(images), size):
        yield images[start : start + size], tokens[start : start + size]


def compared(fp32: Batch, own: Batch, **changes: object) -> tuple:
    options: dict = {"networks": (), "others": (), "keep": 3, "progress": lambda done: None}
    return measure_generated_images(NAMES, cut(*fp32), {"qdq": cut(*own)}, **options | changes)


def test_further_measures_compare_each_image_with_fp32s() -> None:
    tokens = np.zeros((5, 6), np.int64)

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(float) - b).mean())

    pairs = {"lpips": gap, "ms_ssim": lambda a, b: None}
    found, _ = compared((pictures(1), tokens), (pictures(2), tokens), pairs=pairs)
    wanted = [gap(a, b) for a, b in zip(pictures(1), pictures(2), strict=True)]
    assert found["qdq"].pairs.keys() == {"lpips"}
    assert found["qdq"].pairs["lpips"].each == pytest.approx(wanted)
    values = generation_metrics(GeneratorAccuracy(pictures=found["qdq"]))
    assert values["lpips_vs_fp32"] == pytest.approx(np.mean(wanted))
    assert values["ms_ssim_vs_fp32"] is None
    with pytest.raises(AccuracyError, match="lpips of an image is not finite"):
        broken = {"lpips": lambda a, b: float("nan")}
        compared((pictures(1), tokens), (pictures(2), tokens), pairs=broken)


def test_tokens_agree_by_place_and_the_first_other_one_is_found() -> None:
    tokens = np.arange(30).reshape(5, 6)
    other = tokens.copy()
    other[0, 0] += 1  # the first
    other[2, [3, 5]] += 1
    other[4, 5] += 1  # the last
    found, _ = compared((pictures(1), tokens), (pictures(1), other))
    assert found["qdq"].first_difference == (0, None, 3, None, 5)
    assert found["qdq"].token_agreement == pytest.approx(26 / 30)
    assert found["qdq"].identical == pytest.approx(2 / 5)
    assert found["qdq"].median_first_difference == 5  # of 0, 3, 5, 6, 6
    assert found["qdq"].latent_sqnr_db is None and found["qdq"].psnr_vs_fp32.each == (None,) * 5


def test_latents_are_compared_by_energy_and_have_no_tokens() -> None:
    rng = np.random.default_rng(2)
    latents = rng.normal(size=(5, 4, 3, 3)).astype(np.float32)
    other = latents + np.float32(0.01)
    found, _ = compared((pictures(1), latents), (pictures(2), other))
    assert found["qdq"].latent_sqnr_db == pytest.approx(sqnr_db(latents, other))
    assert found["qdq"].token_agreement is None and found["qdq"].first_difference == ()
    assert found["qdq"].identical is None and found["qdq"].median_first_difference is None


def test_distances_are_of_all_pictures_and_chance_has_its_own() -> None:
    one, two, third = pictures(1), pictures(2), pictures(3)
    tokens = np.zeros((5, 6), int)
    found, kept = compared((one, tokens), (two, tokens), networks=(MEAN,), others=iter([third]))
    (row,) = found["qdq"].frechet
    sets = [v.mean(axis=(1, 2)) for v in (one, two, third)]
    assert row.distance == pytest.approx(frechet_distance(sets[0], sets[1]))
    assert row.floor == pytest.approx(frechet_distance(sets[0], sets[2]))
    assert (row.key, row.features, row.width) == ("frechet_latent", "mean colour", 3)
    each = found["qdq"].psnr_vs_fp32.each
    assert each == pytest.approx([psnr(a, b) for a, b in zip(one, two, strict=True)])
    worst = sorted(range(5), key=lambda k: each[k])[:3]
    assert worst != [0, 1, 2] and [p.name for p in kept] == [NAMES[k] for k in worst]
    assert all(p.original is None for p in kept)
    for k, picture in zip(worst, kept, strict=True):
        assert np.array_equal(picture.reference, one[k])
        assert np.array_equal(picture.candidates["qdq"], two[k])


def test_one_picture_and_pictures_without_error_are_kept_too() -> None:
    tokens = np.zeros((5, 6), int)
    _, kept = compared((pictures(1), tokens), (pictures(1), tokens), keep=2)
    assert [p.name for p in kept] == list(NAMES[:2])
    one = (pictures(1)[:1], tokens[:1])
    _, alone = measure_generated_images(
        NAMES[:1],
        cut(*one),
        {"qdq": cut(*one)},
        networks=(),
        others=(),
        keep=3,
        progress=lambda done: None,
    )
    assert [p.name for p in alone] == [NAMES[0]]


def test_pictures_too_small_for_ssim_have_none() -> None:
    tokens = np.zeros((5, 6), int)
    small, _ = compared((pictures(1, 8), tokens), (pictures(2, 8), tokens))
    large, _ = compared((pictures(1), tokens), (pictures(2), tokens))
    assert small["qdq"].ssim_vs_fp32 is None and large["qdq"].ssim_vs_fp32 is not None


def test_another_shape_is_refused_by_candidate_and_picture() -> None:
    tokens = np.zeros((5, 6), int)
    with pytest.raises(AccuracyError, match="qdq made images and tokens") as refusal:
        compared((pictures(1), tokens), (pictures(1, 16), tokens))
    assert refusal.value.where == NAMES[0]
