"""`measure` on a tiny real tokenizer whose numbers can be computed by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from arvg_trt.errors import AccuracyError
from arvg_trt.validate.measure.tokenizer_accuracy import CandidateAccuracy, Codec, measure
from arvg_trt.validate.metrics.image import psnr, to_float, to_uint8
from arvg_trt.validate.metrics.summary import Summary

from ..conftest import LEVELS, GreyCodec, make_images


def accuracy(candidate: Codec, reference: Codec | None = None) -> CandidateAccuracy:
    results, _ = measure(
        make_images(),
        reference or GreyCodec(),
        {"engine": candidate},
        codebook_size=LEVELS,
        keep_images=0,
        progress=lambda done: None,
    )
    return results["engine"]


def test_the_reference_as_candidate_costs_nothing() -> None:
    found = accuracy(GreyCodec())
    assert found.psnr_drop == 0 and found.ssim_drop == 0
    assert found.token_agreement == 1
    assert found.psnr == found.psnr_reference
    assert found.psnr_vs_fp32 == Summary(mean=None, min=None, each=(None, None, None))
    assert found.latent_sqnr_db is None and found.decoder_sqnr_db is None


def test_numbers_are_those_of_each_image_by_itself() -> None:
    fp32, quantized = GreyCodec(), GreyCodec(offset=0.05, gain=0.97)
    found = accuracy(quantized)
    own, drop, equal, used = [], [], [], set()
    latent_signal = latent_noise = decoder_signal = decoder_noise = 0.0
    for _, image in make_images():
        tokens, latent = fp32.encode(to_float(image))
        own_tokens, own_latent = quantized.encode(to_float(image))
        assert tokens is not None and own_tokens is not None
        own.append(psnr(image, to_uint8(quantized.decode(own_tokens))))
        drop.append(psnr(image, to_uint8(fp32.decode(tokens))) - own[-1])
        equal.append(tokens == own_tokens)
        used |= set(own_tokens.ravel().tolist())
        latent_signal += (latent.astype(float) ** 2).sum()
        latent_noise += ((latent.astype(float) - own_latent) ** 2).sum()
        a, b = fp32.decode(tokens).astype(float), quantized.decode(tokens).astype(float)
        decoder_signal += (a**2).sum()
        decoder_noise += ((a - b) ** 2).sum()
    assert found.psnr.each == pytest.approx(own)
    assert found.psnr.mean == pytest.approx(np.mean(own)) and found.psnr.min == min(own)
    assert found.psnr_drop == pytest.approx(np.mean(drop))
    assert found.token_agreement == np.concatenate(equal).mean() < 1
    assert found.codebook_use == len(used) / LEVELS
    assert found.latent_sqnr_db == pytest.approx(10 * math.log10(latent_signal / latent_noise))
    assert found.decoder_sqnr_db == pytest.approx(10 * math.log10(decoder_signal / decoder_noise))


def test_decoder_sqnr_does_not_see_the_encoder() -> None:
    found = accuracy(GreyCodec(offset=0.3))
    assert found.token_agreement is not None and found.token_agreement < 1
    assert found.decoder_sqnr_db is None


def test_a_continuous_tokenizer_has_no_tokens_to_agree_on() -> None:
    found = accuracy(GreyCodec(continuous=True, offset=0.1), GreyCodec(continuous=True))
    assert found.token_agreement is None and found.codebook_use is None
    assert found.psnr_drop is not None and found.latent_sqnr_db is not None


def test_identical_images_do_not_hide_a_bad_one_in_the_mean() -> None:
    assert Summary.of([math.inf, 20.0, 30.0]) == Summary(
        mean=25.0, min=20.0, each=(None, 20.0, 30.0)
    )


def test_the_worst_pictures_are_kept_in_order_and_progress_counts_images() -> None:
    seen: list[int] = []
    results, pictures = measure(
        reversed(make_images()),
        GreyCodec(),
        {"qdq": GreyCodec(offset=0.2)},
        codebook_size=None,
        keep_images=2,
        progress=seen.append,
    )
    figures = results["qdq"].psnr_vs_fp32.each
    order = sorted(range(3), key=lambda k: figures[k] or math.inf)
    assert order != [0, 1, 2]
    assert [p.name for p in pictures] == [f"set/{2 - k}.png" for k in order[:2]]
    assert seen == [1, 2, 3]
    tokens, _ = GreyCodec(offset=0.2).encode(to_float(pictures[0].original))
    assert tokens is not None
    assert np.array_equal(pictures[0].candidates["qdq"], to_uint8(GreyCodec().decode(tokens)))


@dataclass(frozen=True)
class Overflowing:
    """The grey tokenizer with one non-finite value in one graph, as after an FP16 overflow."""

    graph: str
    value: float

    def encode(
        self, image: NDArray[np.float32]
    ) -> tuple[NDArray[np.int32] | None, NDArray[np.float32]]:
        indices, latent = GreyCodec().encode(image)
        if self.graph == "encoder":
            latent[0, 0, 0, 0] = self.value
        return indices, latent

    def decode(self, code: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.float32]:
        image = GreyCodec().decode(code)
        if self.graph == "decoder":
            image[0, 1, 2, 3] = self.value
        return image


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_is_refused_with_image_and_graph(graph: str, value: float) -> None:
    with pytest.raises(AccuracyError) as caught:
        accuracy(Overflowing(graph, value))
    assert caught.value.where == "set/0.png"
    assert f"the {graph} of engine gave 1 non-finite" in caught.value.what


def test_a_non_finite_reference_is_refused_too() -> None:
    with pytest.raises(AccuracyError, match="decoder of the FP32 reference"):
        accuracy(GreyCodec(), Overflowing("decoder", math.nan))


def test_indices_outside_the_codebook_are_refused() -> None:
    with pytest.raises(AccuracyError, match="outside a codebook of 4"):
        measure(
            make_images(),
            GreyCodec(),
            {},
            codebook_size=4,
            keep_images=0,
            progress=lambda done: None,
        )


def test_a_candidate_without_tokens_is_refused_beside_one_with_tokens() -> None:
    with pytest.raises(AccuracyError, match="gave indices None"):
        accuracy(GreyCodec(continuous=True))


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.zeros((24, 20, 3), np.float32), "expected a uint8 image"),
        (np.zeros((24, 20), np.uint8), "expected a uint8 image"),
        (np.zeros((8, 20, 3), np.uint8), "at least 11 pixels"),
    ],
)
def test_images_that_cannot_be_measured_are_refused(image: NDArray[np.uint8], what: str) -> None:
    with pytest.raises(AccuracyError, match=what):
        measure(
            [("a.png", image)],
            GreyCodec(),
            {},
            codebook_size=None,
            keep_images=0,
            progress=lambda done: None,
        )


def test_no_images_is_an_error() -> None:
    with pytest.raises(AccuracyError, match="no images"):
        measure(
            [],
            GreyCodec(),
            {},
            codebook_size=None,
            keep_images=0,
            progress=lambda done: None,
        )
