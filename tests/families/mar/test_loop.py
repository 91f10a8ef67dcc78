"""Images from exported graphs against the published loop in float64: masks in raster order.

With random weights a denoiser's errors are as large as its noise, and the first step back
multiplies them by 2e4. So most tests put in its place the exact denoiser of normal tokens, whose
mean is what the pass says of them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from arvg_trt.errors import BundleError, GenerationError, WorkspaceError
from arvg_trt.families.mar.diffusion import Diffusion
from arvg_trt.families.mar.loop import masked_counts, strength
from arvg_trt.runtime.generator import Generator, choose_sampling
from arvg_trt.runtime.sampling import Sampling, image_streams

from ...runtime.test_generator import pictures
from ..shared.formulas import linear
from .models import SMALL, TinyMar
from .test_model import (
    decoder_by_formula,
    denoiser_by_formula,
    encoder_by_formula,
    state_of,
)

Array = NDArray[np.float64]
Denoiser = Callable[[Array, int, Array], Array]  # x [n, c], time, z [n, C] -> [n, 2c]
LABELS = [4, 0, 2]
LENGTH, CHANNELS = SMALL.length, SMALL.latent_channels
KEPT = Diffusion.of(1000).alpha_bar
pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian_graph(path: Path) -> Path:
    """noise = sqrt(1 - kept) (x - sqrt(kept) mean): exact where tokens are normal around a mean.

    The mean and the spread are columns of the condition.
    """
    tables = {
        "root": np.sqrt(KEPT)[:, None],
        "left": np.sqrt(1 - KEPT)[:, None],
        "third": np.array(0.3),
    }
    nodes = [
        helper.make_node("Split", ["condition"], ["m", "s", "unused"], axis=1, num_outputs=3),
        helper.make_node("Gather", ["root", "time"], ["r"]),
        helper.make_node("Gather", ["left", "time"], ["l"]),
        helper.make_node("Slice", ["m", "zero", "channels", "one"], ["m4"]),
        helper.make_node("Slice", ["s", "zero", "channels", "one"], ["s4"]),
        helper.make_node("Mul", ["m4", "third"], ["mean"]),
        helper.make_node("Mul", ["r", "mean"], ["moved"]),
        helper.make_node("Sub", ["x", "moved"], ["apart"]),
        helper.make_node("Mul", ["l", "apart"], ["noise"]),
        helper.make_node("Tanh", ["s4"], ["spread"]),
    ]
    numbers = {"zero": [0], "one": [1], "channels": [CHANNELS]}
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tables.items()]
    constants += [numpy_helper.from_array(np.array(v), k) for k, v in numbers.items()]

    def value(name: str, kind: int, shape: list[object]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "gaussian",
        [
            value("x", TensorProto.FLOAT, ["m", CHANNELS]),
            value("time", TensorProto.INT64, [1]),
            value("condition", TensorProto.FLOAT, ["m", SMALL.head_width]),
        ],
        [value(name, TensorProto.FLOAT, ["m", CHANNELS]) for name in ("noise", "spread")],
        constants,
    )
    opset = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def gaussian(tiny_mar: TinyMar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny export with the exact denoiser of normal tokens."""
    folder = copied(tiny_mar, tmp_path_factory.mktemp("gaussian") / "export")
    gaussian_graph(folder / "denoise.onnx")
    return folder


@pytest.fixture(scope="module")
def generator(gaussian: Path) -> Generator:
    return Generator.open(gaussian, threads=1, verify=False)


def copied(mar: TinyMar, folder: Path) -> Path:
    shutil.copytree(mar.folder, folder)
    return folder


def exact_denoiser(mar: TinyMar) -> Denoiser:
    state = state_of(mar.transformer)

    def denoise(x: Array, time: int, z: Array) -> Array:
        condition = linear(state, "diffloss.net.cond_embed", z)
        third = SMALL.head_width // 3
        mean, spread = (
            condition[:, :CHANNELS] * 0.3,
            np.tanh(condition[:, third : third + CHANNELS]),
        )
        noise = (1 - KEPT[time]) ** 0.5 * (x - KEPT[time] ** 0.5 * mean)
        return np.concatenate([noise, spread], axis=1)

    return denoise


def p_sample_loop(
    predict: Callable[[Array, int], Array],
    steps: int,
    temperature: float,
    draws: Callable[[], Array],
) -> Array:
    """The official respaced sampling of n tokens: betas of what is kept, one after the other."""
    stride, at, kept_times = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        kept_times.append(round(at))
        at += stride
    betas, last, product = [], 1.0, 1.0
    for i in range(1000):
        a, b = (math.cos((j / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for j in (i, i + 1))
        product *= 1 - min(1 - b / a, 0.999)
        if i in kept_times:
            betas.append(1 - product / last)
            last = product
    beta = np.array(betas)
    cumulative = np.cumprod(1 - beta)
    previous = np.append(1.0, cumulative[:-1])
    variance = beta * (1 - previous) / (1 - cumulative)
    x = draws()
    for i in reversed(range(steps)):
        noise, spread = np.split(predict(x, kept_times[i]), 2, axis=1)
        fraction = (spread + 1) / 2
        log_variance = fraction * np.log(beta[i]) + (1 - fraction) * np.log(variance[max(i, 1)])
        clean = np.sqrt(1 / cumulative[i]) * x - np.sqrt(1 / cumulative[i] - 1) * noise
        mean = beta[i] * np.sqrt(previous[i]) / (1 - cumulative[i]) * clean
        mean = mean + (1 - previous[i]) * np.sqrt(1 - beta[i]) / (1 - cumulative[i]) * x
        x = mean + (np.exp(log_variance / 2) * temperature * draws() if i else 0)
    return x


def generate_by_formula(
    mar: TinyMar, denoise: Denoiser, sampling: Sampling, seed: int = 0
) -> Array:
    """Latents [B, c, h, w] of LABELS, an image at a time, after the official loop."""
    state, found = state_of(mar.transformer), []
    iterations, steps = sampling.iterations, sampling.diffusion_steps
    assert iterations is not None and steps is not None
    guided = sampling.cfg not in (0, 1)
    for label, stream in zip(LABELS, image_streams(seed, 0, len(LABELS)), strict=True):
        order = stream.permutation(LENGTH)
        tokens, mask = np.zeros((LENGTH, CHANNELS)), np.ones(LENGTH, bool)
        for k in range(iterations):
            halves = []
            for row in (label, SMALL.num_classes)[: 1 + guided]:
                encoded = encoder_by_formula(state, tokens, mask, row)
                halves.append(decoder_by_formula(state, encoded, mask))
            length = np.floor(LENGTH * np.cos(math.pi / 2 * (k + 1) / iterations))
            length = int(max(1, min(mask.sum() - 1, length)))
            following = np.zeros(LENGTH, bool)
            following[order[:length]] = True
            predicted = mask if k == iterations - 1 else mask ^ following
            # The places in the order in which the order reveals them: from its end.
            places = np.array([p for p in order[::-1] if predicted[p]])
            power = 1.0 if sampling.cfg_power is None else sampling.cfg_power
            scale = 1 + (sampling.cfg - 1) * ((LENGTH - length) / LENGTH) ** power

            def predict(x: Array, time: int) -> Array:
                outputs = [denoise(x, time, half[places]) for half in halves]  # noqa: B023
                noise = outputs[0][:, :CHANNELS]
                if guided:
                    other = outputs[1][:, :CHANNELS]
                    noise = other + scale * (noise - other)  # noqa: B023
                return np.concatenate([noise, outputs[0][:, CHANNELS:]], axis=1)

            def draws() -> Array:
                return stream.standard_normal((len(places), CHANNELS))  # noqa: B023

            temperature = 0.0 if sampling.greedy else sampling.temperature
            if sampling.greedy:
                first = [draws()]
                new = p_sample_loop(
                    predict,
                    steps,
                    0.0,
                    lambda: first.pop() if first else np.zeros(1),  # noqa: B023
                )
            else:
                new = p_sample_loop(predict, steps, temperature, draws)
            tokens = tokens.copy()
            tokens[places] = new
            mask = following
        found.append(tokens.T.reshape(CHANNELS, SMALL.side, SMALL.side))
    return np.stack(found)


def sampled(cfg: float, iterations: int, steps: int, **others: float) -> Sampling:
    options = {"cfg_power": 1.0} | others
    return Sampling(
        cfg=cfg, top_k=0, top_p=1.0, iterations=iterations, diffusion_steps=steps, **options
    )


def run(generator: Generator, sampling: Sampling, seed: int = 0, **others: int):  # type: ignore[no-untyped-def]
    return next(generator.batches(LABELS, seed=seed, sampling=sampling, **others))


@pytest.mark.parametrize(
    "sampling",
    [
        sampled(2.9, 16, 20),
        sampled(2.9, 5, 30),
        sampled(3.0, 5, 10, cfg_power=0.0),
        sampled(1.0, 4, 10, temperature=0.95),
        sampled(0.0, 4, 10),
        sampled(3.2, 1, 100),
        sampled(2.9, 6, 10, temperature=0.7),
        sampled(2.9, 6, 10, greedy=True),
    ],
    ids=str,
)
def test_latents_and_images_are_those_of_the_published_loop(
    tiny_mar: TinyMar, generator: Generator, sampling: Sampling
) -> None:
    wanted = generate_by_formula(tiny_mar, exact_denoiser(tiny_mar), sampling)
    found = run(generator, sampling)
    assert found.tokens.shape == wanted.shape and found.tokens.dtype == np.float32
    assert 0.2 < wanted.std() < 3
    np.testing.assert_allclose(found.tokens, wanted, atol=5e-4)
    image = tiny_mar.tokenizer.decode(torch.from_numpy(wanted / SMALL.latent_scale).float())
    assert np.abs(found.images.astype(int) - pictures(image.numpy())).max() <= 1
    assert len(np.unique(found.images)) > 50


def test_the_exported_denoiser_makes_what_its_formula_makes(tiny_mar: TinyMar) -> None:
    """Relative to the latents, which are as large as a random denoiser makes them."""
    state, sampling = state_of(tiny_mar.transformer), sampled(2.0, 2, 6)
    wanted = generate_by_formula(
        tiny_mar, lambda x, time, z: denoiser_by_formula(state, x, time, z), sampling
    )
    found = run(Generator.open(tiny_mar.workspace, threads=1), sampling).tokens
    np.testing.assert_allclose(found, wanted, atol=1e-3 * wanted.std())


def test_batches_of_other_sizes_give_the_same_latents(generator: Generator) -> None:
    sampling = sampled(2.9, 5, 4)
    whole = run(generator, sampling, batch_size=3)
    parts = list(generator.batches(LABELS, seed=0, sampling=sampling, batch_size=1))
    for k, part in enumerate(parts):
        np.testing.assert_allclose(part.tokens, whole.tokens[k : k + 1], atol=1e-4)


def test_orders_and_noise_depend_on_the_seed_and_the_image(generator: Generator) -> None:
    sampling = sampled(2.9, 3, 4)
    first, again, other = (run(generator, sampling, seed=seed).tokens for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.allclose(first, other, atol=0.1)
    same = generator.generate([1, 1], iterations=3, diffusion_steps=4).tokens
    assert not np.allclose(same[0], same[1], atol=0.1)


def test_greedy_is_a_temperature_of_nothing(generator: Generator) -> None:
    """Greedy makes the means of normal tokens; draws lie around them."""
    options = {"iterations": 4, "diffusion_steps": 30}
    greedy, cold, warm = (
        generator.generate(LABELS, **options, **how).tokens
        for how in ({"greedy": True}, {"temperature": 1e-9}, {})
    )
    np.testing.assert_allclose(greedy, cold, atol=0.02)
    assert 0.5 < (warm - greedy).std() < 2


def official_counts(iterations: int, length: int) -> list[int]:
    """Masked after each pass, as the official loop counts them in float32."""
    counts, masked = [], np.float32(length)
    for step in range(iterations):
        ratio = np.cos(math.pi / 2.0 * (step + 1) / iterations)
        wanted = np.float32(np.floor(length * ratio))
        masked = max(np.float32(1), min(masked - np.float32(1), wanted))
        counts.append(int(masked))
    return [*counts[:-1], 0]  # the last pass predicts all that are left


@pytest.mark.parametrize("iterations", [1, 2, 3, 8, 16, 32, 64, 100, 128, 255, 256])
def test_masked_counts_are_the_official_ones(iterations: int) -> None:
    assert masked_counts(iterations, 256) == official_counts(iterations, 256)


def test_the_published_number_of_passes_makes_a_token_each() -> None:
    assert masked_counts(256, 256) == list(range(255, -1, -1))
    made = -np.diff([256, *masked_counts(64, 256)])
    assert made[:3].tolist() == [1, 1, 1] and made.max() == 7 and made.sum() == 256


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))))
def test_every_pass_makes_tokens_and_all_are_made(sizes: tuple[int, int]) -> None:
    iterations, length = sizes
    counts = [length, *masked_counts(iterations, length)]
    assert len(counts) == iterations + 1 and counts[-1] == 0
    assert all(a > b for a, b in pairwise(counts))


def test_linear_guidance_never_reaches_all_of_it_and_constant_guidance_is_it() -> None:
    linear, constant = sampled(2.9, 4, 4), sampled(2.9, 4, 4, cfg_power=0.0)
    assert strength(linear, 255, 256) == pytest.approx(1 + 1.9 / 256)
    assert strength(linear, 1, 256) == pytest.approx(1 + 1.9 * 255 / 256)
    assert [strength(constant, masked, 256) for masked in (255, 100, 1)] == [2.9] * 3


def test_own_sampling_is_the_spec_s(generator: Generator) -> None:
    assert choose_sampling(generator.spec) == sampled(3.0, LENGTH, 100)
    assert generator.spec.steps == LENGTH


def test_progress_counts_the_passes(generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    generator.generate(
        LABELS,
        iterations=3,
        diffusion_steps=2,
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(k + 1, 6) for k in range(6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations is 0, not 1 to 16, the tokens of an image"),
        ({"iterations": LENGTH + 1}, "iterations is 17"),
        ({"diffusion_steps": 1}, "diffusion_steps is 1, not 2 to 1000"),
        ({"diffusion_steps": 1001}, "diffusion_steps is 1001"),
        ({"temperature": 0.0}, "temperature is 0.0, not above 0"),
        ({"cfg": -1.0}, "cfg is -1.0"),
        ({"top_k": 5}, "top_k is not this family's"),
        ({"top_k": 5, "top_p": 0.5}, "top_k, top_p is not this family's"),
    ],
)
def test_options_out_of_range_are_refused(
    generator: Generator, options: dict[str, float], message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        generator.generate([0], **options)


@pytest.mark.parametrize("label", [-1, SMALL.num_classes])
def test_labels_out_of_range_are_refused(generator: Generator, label: int) -> None:
    """The null class too: its row is no class."""
    with pytest.raises(GenerationError, match=f"labels out of range: {label}"):
        generator.generate([0, label])


def test_predictions_that_are_not_finite_are_refused_by_pass_and_time(
    tiny_mar: TinyMar, tmp_path: Path
) -> None:
    folder = copied(tiny_mar, tmp_path / "export")
    model = onnx.load(folder / "denoise.onnx")
    table = next(t for t in model.graph.initializer if t.dims == [1000, SMALL.head_width])
    values = numpy_helper.to_array(table).copy()
    values[61] = np.nan
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, folder / "denoise.onnx")
    with pytest.raises(
        GenerationError, match=r"predictions of pass 0 at time 61 are not finite.*image 0"
    ) as error:
        Generator.open(folder, verify=False).generate([0])
    assert str(error.value.where).endswith("denoise.onnx")
    assert (
        Generator.open(folder, verify=False)
        .generate([0], diffusion_steps=2, iterations=1)
        .images.size
    )


@pytest.mark.parametrize("name", ["pass", "denoise", "decoder"])
def test_missing_graph_is_refused_by_its_name(tiny_mar: TinyMar, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_mar, tmp_path / "export")
    (folder / f"{name}.onnx").unlink()
    with pytest.raises(BundleError, match=rf"{name}\.onnx missing"):
        Generator.open(folder, verify=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 0}, "side"),
        ({"defaults": {"cfg": 1.0}}, "iterations"),
        ({"family": "rar"}, "vocab_size"),
    ],
)
def test_description_that_is_not_understood_is_refused(
    tiny_mar: TinyMar, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = copied(tiny_mar, tmp_path / "export")
    spec = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(spec | changes))
    with pytest.raises(WorkspaceError, match=message):
        Generator.open(folder, verify=False)
