"""Images from exported graphs against the published loop in float64 PyTorch, without a cache."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from arvg_trt.errors import BundleError, GenerationError, WorkspaceError
from arvg_trt.runtime.generator import Generator, choose_sampling
from arvg_trt.runtime.sampling import Sampling

from ...runtime.test_generator import pictures
from ..par.test_loop import LABELS, Choose, Drawn, greedy
from .models import SMALL, TinyLlamagen

LENGTH, SIDE = SMALL.length, SMALL.side
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def generator(tiny_llamagen: TinyLlamagen) -> Generator:
    return Generator.open(tiny_llamagen.workspace, threads=1)


def generate_uncached(
    llamagen: TinyLlamagen, choose: Choose, g: float
) -> tuple[np.ndarray, np.ndarray]:  # images [B, 3, H, W], tokens [B, L]
    """Every token runs all that is known again, in float64; guidance only above 1."""
    transformer, tokenizer = (
        copy.deepcopy(m).double() for m in (llamagen.transformer, llamagen.tokenizer)
    )
    labels = torch.tensor(LABELS)
    tokens = torch.zeros(len(LABELS), 0, dtype=torch.int64)
    for _ in range(LENGTH):
        logits = transformer.run(labels, tokens)[0][:, -1:]
        if g > 1:
            null = torch.full_like(labels, SMALL.num_classes)
            unconditional = transformer.run(null, tokens)[0][:, -1:]
            logits = unconditional + (logits - unconditional) * g
        tokens = torch.cat((tokens, torch.from_numpy(choose(logits.numpy()))), dim=1)
    image = tokenizer.decode(tokens.reshape(-1, SIDE, SIDE))
    return image.numpy(), tokens.numpy()


@pytest.mark.parametrize("g", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_greedy_tokens_and_images_are_those_of_the_published_loop(
    tiny_llamagen: TinyLlamagen, generator: Generator, g: float
) -> None:
    images, tokens = generate_uncached(tiny_llamagen, greedy, g)
    found = generator.generate(LABELS, cfg=g, greedy=True)
    assert np.array_equal(found.tokens, tokens) and found.tokens.dtype == np.int32
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1
    assert len(np.unique(tokens)) > 8  # the model does not always say the same


@pytest.mark.parametrize(
    ("seed", "temperature", "top_k", "top_p"),
    [(0, 1.0, 0, 1.0), (1, 0.7, 0, 1.0), (2, 1.0, 7, 1.0), (3, 1.3, 20, 0.8)],
)
def test_drawn_tokens_are_those_of_the_published_loop(
    tiny_llamagen: TinyLlamagen,
    generator: Generator,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    choose = Drawn(seed, temperature, top_k, top_p)
    images, tokens = generate_uncached(tiny_llamagen, choose, 1.5)
    found = generator.generate(
        LABELS, seed=seed, cfg=1.5, temperature=temperature, top_k=top_k, top_p=top_p
    )
    assert np.array_equal(found.tokens, tokens)
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1


def test_guidance_up_to_one_is_none(generator: Generator) -> None:
    whole = generator.generate(LABELS, cfg=0, greedy=True)
    assert np.array_equal(generator.generate(LABELS, cfg=0.3, greedy=True).tokens, whole.tokens)
    more = generator.generate(LABELS, cfg=1.5, greedy=True)
    assert not np.array_equal(more.tokens, whole.tokens)


def test_batches_of_other_sizes_give_the_same_tokens(generator: Generator) -> None:
    labels = [0, 1, 2, 3, 4]
    whole = generator.generate(labels, batch_size=5)
    assert np.array_equal(generator.generate(labels, batch_size=2).tokens, whole.tokens)


def test_progress_tells_every_step(generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    generator.generate(
        LABELS, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert generator.spec.steps == LENGTH
    assert seen == [(k, 2 * LENGTH) for k in range(1, 2 * LENGTH + 1)]


def test_own_sampling_is_the_official_samplers(generator: Generator) -> None:
    assert choose_sampling(generator.spec) == Sampling(cfg=1.5, top_k=0, top_p=1.0)


def test_logits_that_are_not_finite_are_refused_by_step(
    tiny_llamagen: TinyLlamagen, tmp_path: Path
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_llamagen.folder, folder)
    model = onnx.load(folder / "step.onnx")
    rows = SMALL.vocab_size + SMALL.num_classes + 1
    table = next(t for t in model.graph.initializer if t.dims == [rows, SMALL.width])
    values = numpy_helper.to_array(table).copy()
    values[: SMALL.vocab_size] = np.nan
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, folder / "step.onnx")
    message = r"logits of step 1 are not finite, first at token 0 of image 0"
    with pytest.raises(GenerationError, match=message):
        Generator.open(folder, verify=False).generate([0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"side": 0}, WorkspaceError, "side"),
        ({"depth": 3}, BundleError, r"lacks past_key\.2, past_value\.2"),
        ({"vocab_size": 47}, BundleError, "logits of 48 tokens"),
    ],
)
def test_description_that_does_not_fit_is_refused(
    tiny_llamagen: TinyLlamagen,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    folder = tmp_path / "export"
    shutil.copytree(tiny_llamagen.folder, folder)
    spec = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(spec | changes))
    with pytest.raises(error, match=message):
        Generator.open(folder, verify=False)
