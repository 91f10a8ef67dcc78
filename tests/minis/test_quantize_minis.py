"""Trained generators at eight bits: calibrated on their own pictures, then made by Q/DQ graphs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.files import load_sample, sample_files
from arvg_trt.workspace.manifest import MANIFEST

from ..command_line import arvg, assert_refused
from .minis import LABELS, SHOWN, Quantized

# Linears of a transformer of six blocks that are quantized: a RAR and a PAR have no last products
# that are computed once an image; a VAR's modulations are.
QUANTIZED = {"var": 32, "rar": 32, "par": 31}


@pytest.fixture(scope="module", params=sorted(QUANTIZED))
def quantized(
    request: pytest.FixtureRequest, quantized_of: Callable[[str], Quantized]
) -> Quantized:
    return quantized_of(request.param)


def test_samples_are_its_own_pictures_under_guidance(quantized: Quantized) -> None:
    mini, files = quantized.mini, sample_files(quantized.workspace / "calibrate" / "samples")
    samples = [load_sample(path) for path in files]
    assert [int(s["labels"][0]) for s in samples] == [x for k in range(20) for x in (k % 10, 10)]
    tokens = Generator.open(mini.workspace).generate(LABELS, seed=0, batch_size=10).tokens[:1]
    for name, shown in SHOWN[mini.family](tokens, mini.workspace / "export").items():
        assert np.array_equal(samples[0][name], samples[1][name])
        np.testing.assert_allclose(samples[0][name], shown, atol=1e-5)


def test_eight_bits_agree_with_float_on_what_comes_next(quantized: Quantized) -> None:
    mini = quantized.mini
    shown = SHOWN[mini.family](mini.made.tokens, mini.workspace / "export")
    wanted, found = (
        reference_session(folder / "full.onnx")
        .run({"labels": LABELS, **shown})["logits"]
        .argmax(axis=-1)
        for folder in (mini.workspace / "export", quantized.folder)
    )
    assert (wanted == found).mean() > 0.93


def test_its_quantized_graphs_generate_from_their_folder(
    quantized: Quantized, tmp_path: Path
) -> None:
    mini = quantized.mini
    again = Generator.open(quantized.folder).generate(LABELS, seed=1, batch_size=10)
    assert again.images.shape == mini.made.images.shape
    assert mini.losses(LABELS, again.tokens).mean() < 0.7 * math.log(512)
    outcome = arvg("generate", quantized.folder, "--labels", "3", "-o", tmp_path / "out")
    assert outcome.code == 0 and len(list((tmp_path / "out").glob("*_3.png"))) == 1


def test_its_weights_take_a_third_of_the_bytes(quantized: Quantized) -> None:
    results = json.loads((quantized.folder / MANIFEST).read_text())["results"]
    assert results["packed_bytes"] < 0.33 * results["fp32_bytes"]
    assert results["quantized"] == QUANTIZED[quantized.mini.family]


BLOCKWISE = ("--quantize-method", "blockwise", "--activation-bits", "8")


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("--labels: 7 images without classes", ("calibrate", "--images", "skimage")),
        ("--synthetic: a generator takes what it generates", ("calibrate", "--synthetic")),
        ("label out of range: 10", ("calibrate", "--labels", "3,10")),
        ("is neither a class", ("calibrate", "--labels", "cat")),
        ("7 images without classes", ("validate", "--name", "w8a8", "--images", "skimage")),
        ("matches no site", ("quantize", "--exclude", "blocks.99.*")),
        ("blockwise is weight-only", ("quantize", *BLOCKWISE)),
    ],
)
def test_what_a_generator_cannot_have_is_refused(
    quantized: Quantized, words: str, args: tuple[str, ...]
) -> None:
    outcome = arvg(args[0], quantized.workspace, *args[1:])
    assert outcome.code not in (0, 1, 2), outcome  # a kind of its own, not a usage error
    assert outcome.err.count("\n") == 1 and words in outcome.err, outcome.err


def test_statistics_of_another_export_are_refused(quantized: Quantized, tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(quantized.workspace, copy)
    manifest = copy / "calibrate" / MANIFEST
    told = json.loads(manifest.read_text())
    told["inputs"]["export/full.onnx"] = "0" * 64
    manifest.write_text(json.dumps(told))
    outcome = arvg("quantize", copy, "--name", "other")
    assert_refused(outcome, 9, "made from another export: export/full.onnx differs", "calibrate")
