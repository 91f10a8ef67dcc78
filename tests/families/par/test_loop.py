"""Images from exported graphs against the published loop in float64 PyTorch, without a cache."""

from __future__ import annotations

import copy
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
from onnx import numpy_helper

from arvg_trt.errors import BundleError, GenerationError, WorkspaceError
from arvg_trt.families.par.config import PUBLISHED
from arvg_trt.families.par.spec import ParSpec
from arvg_trt.runtime.generator import Generator, choose_sampling
from arvg_trt.runtime.sampling import Sampling, image_streams
from arvg_trt.runtime.spec import Defaults

from ...runtime.test_generator import pictures
from .models import SMALL, TinyPar

LABELS = [4, 0, 2]
LENGTH, GROUP, SIDE = SMALL.length, SMALL.group, SMALL.side
Choose = Callable[[np.ndarray], np.ndarray]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def generator(tiny_par: TinyPar) -> Generator:
    return Generator.open(tiny_par.workspace, threads=1)


def raster(tokens: np.ndarray) -> np.ndarray:
    """The official reshaping of [B, L] to maps [B, side, side]."""
    s = math.isqrt(GROUP)
    m = SIDE // s
    return tokens.reshape(-1, m, m, s, s).transpose(0, 3, 1, 4, 2).reshape(-1, SIDE, SIDE)


def generate_uncached(
    par: TinyPar, choose: Choose, g: float
) -> tuple[np.ndarray, np.ndarray]:  # images [B, 3, H, W], tokens [B, L]
    """Every call runs all positions again, the unknown ones being token 0, in float64."""
    transformer, tokenizer = (copy.deepcopy(m).double() for m in (par.transformer, par.tokenizer))
    count = len(LABELS)
    rows = torch.tensor([*LABELS, *[SMALL.num_classes] * count])
    tokens = torch.zeros(count, LENGTH, dtype=torch.int64)
    bounds = [*range(GROUP), *range(GROUP, LENGTH + 1, GROUP)]
    for a, b in pairwise(bounds):
        logits = transformer(rows, tokens[:, :-GROUP].repeat(2, 1))[:, a:b]
        conditional, unconditional = logits[:count], logits[count:]
        if g > 1:
            conditional = unconditional + (conditional - unconditional) * g
        tokens[:, a:b] = torch.from_numpy(choose(conditional.numpy()))
    image = tokenizer.decode(torch.from_numpy(raster(tokens.numpy())))
    return image.numpy(), tokens.numpy()


def greedy(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=2)


class Drawn:
    """torch.multinomial's arg-max of p / E, of what top-k and then top-p keep; noise by image."""

    def __init__(self, seed: int, temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
        self.streams = image_streams(seed, 0, len(LABELS))
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        count, n, vocab = logits.shape
        noise = np.stack([s.standard_exponential((n, vocab)) for s in self.streams])
        chosen = np.empty((count, n), np.int64)
        for at in np.ndindex(count, n):
            values = logits[at] / self.temperature
            if self.top_k:
                values = np.where(values < np.sort(values)[-self.top_k], -np.inf, values)
            order = np.argsort(-values, kind="stable")
            p = np.exp(values[order] - values.max())
            before = np.cumsum(p / p.sum()) - p / p.sum()
            p = np.where(before > self.top_p, 0, p)
            chosen[at] = order[np.argmax(p / noise[at][order])]
        return chosen


@pytest.mark.parametrize("g", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_greedy_tokens_and_images_are_those_of_the_published_loop(
    tiny_par: TinyPar, generator: Generator, g: float
) -> None:
    images, tokens = generate_uncached(tiny_par, greedy, g)
    found = generator.generate(LABELS, cfg=g, greedy=True)
    assert np.array_equal(found.tokens, tokens) and found.tokens.dtype == np.int32
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1
    assert len(np.unique(tokens)) > 8  # the model does not always say the same


@pytest.mark.parametrize(
    ("seed", "temperature", "top_k", "top_p"),
    [(0, 1.0, 0, 1.0), (1, 0.7, 0, 1.0), (2, 1.0, 7, 1.0), (3, 1.3, 20, 0.8), (4, 1.0, 0, 0.5)],
)
def test_drawn_tokens_are_those_of_the_published_loop(
    tiny_par: TinyPar,
    generator: Generator,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    choose = Drawn(seed, temperature, top_k, top_p)
    images, tokens = generate_uncached(tiny_par, choose, 1.5)
    found = generator.generate(
        LABELS, seed=seed, cfg=1.5, temperature=temperature, top_k=top_k, top_p=top_p
    )
    assert np.array_equal(found.tokens, tokens)
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1


def test_guidance_up_to_one_is_none(generator: Generator) -> None:
    """Guidance below 1 would push away from the class, officially too."""
    whole = generator.generate(LABELS, cfg=0, greedy=True)
    for g in (0.3, 1.0):
        assert np.array_equal(generator.generate(LABELS, cfg=g, greedy=True).tokens, whole.tokens)
    more = generator.generate(LABELS, cfg=1.5, greedy=True)
    assert not np.array_equal(more.tokens, whole.tokens)


def test_batches_of_other_sizes_give_the_same_tokens(generator: Generator) -> None:
    labels = [0, 1, 2, 3, 4]
    whole = generator.generate(labels, batch_size=5)
    for size in (1, 2):
        parts = generator.generate(labels, batch_size=size)
        assert np.array_equal(parts.tokens, whole.tokens)


@pytest.mark.parametrize(("name", "steps"), [("xl-4x", 147), ("3b-16x", 51)])
def test_steps_are_as_many_as_published(name: str, steps: int) -> None:
    config = PUBLISHED[name]
    spec = ParSpec(
        side=config.side,
        group=config.group,
        num_classes=config.num_classes,
        vocab_size=config.vocab_size,
        depth=config.depth,
        width=config.width,
        heads=config.heads,
        head_dim=config.head_dim,
        image_size=384,
        defaults=Defaults(cfg=1.5, top_k=0, top_p=1.0),
    )
    assert spec.steps == steps
    assert spec.special.tolist() == [config.special_tokens + k for k in range(config.special)]


def test_progress_tells_every_step(generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    generator.generate(
        LABELS, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    steps = generator.spec.steps
    assert steps == GROUP + LENGTH // GROUP - 1 == 7
    assert seen == [(k, 2 * steps) for k in range(1, 2 * steps + 1)]


def test_own_sampling_is_the_official_samplers(generator: Generator) -> None:
    assert choose_sampling(generator.spec) == Sampling(cfg=1.5, top_k=0, top_p=1.0)


def test_top_k_of_one_is_greedy(generator: Generator) -> None:
    drawn = generator.generate(LABELS, top_k=1, seed=5)
    assert np.array_equal(drawn.tokens, generator.generate(LABELS, greedy=True).tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0, not above 0"),
        ({"cfg_power": 1.0}, "cfg_power is not this family's"),
        ({"cfg": -1.0}, "cfg is -1.0"),
        ({"top_k": SMALL.vocab_size + 1}, "top_k is 49"),
        ({"top_p": 0.0}, "top_p is 0.0"),
    ],
)
def test_options_out_of_range_are_refused(
    generator: Generator, options: dict[str, float], message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        generator.generate([0], **options)


@pytest.mark.parametrize("label", [-1, SMALL.num_classes])
def test_a_label_out_of_range_is_refused(generator: Generator, label: int) -> None:
    """The null class is not a label either."""
    with pytest.raises(GenerationError, match=rf"labels out of range: {label}"):
        generator.generate([0, label])


def copied(par: TinyPar, folder: Path) -> Path:
    shutil.copytree(par.folder, folder)
    return folder


def test_logits_that_are_not_finite_are_refused_by_step(tiny_par: TinyPar, tmp_path: Path) -> None:
    folder = copied(tiny_par, tmp_path / "export")
    model = onnx.load(folder / "step.onnx")
    rows = SMALL.special_tokens + SMALL.special
    table = next(t for t in model.graph.initializer if t.dims == [rows, SMALL.width])
    values = numpy_helper.to_array(table).copy()
    values[SMALL.special_tokens :] = np.nan
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, folder / "step.onnx")
    message = r"logits of step 4 are not finite, first at token 0 of image 0"
    with pytest.raises(GenerationError, match=message) as error:
        Generator.open(folder, verify=False).generate([0])
    assert str(error.value.where).endswith("step.onnx")


@pytest.mark.parametrize("name", ["step", "decoder"])
def test_missing_graph_is_refused_by_its_name(tiny_par: TinyPar, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_par, tmp_path / "export")
    (folder / f"{name}.onnx").unlink()
    with pytest.raises(BundleError, match=rf"{name}\.onnx missing"):
        Generator.open(folder, verify=False)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"group": 0}, WorkspaceError, "group"),
        ({"family": "rar"}, WorkspaceError, "cfg_power"),
        ({"depth": 3}, BundleError, r"lacks past_key\.2, past_value\.2"),
        ({"kv_type": "float16"}, BundleError, "is float32, not float16"),
    ],
)
def test_description_that_does_not_fit_is_refused(
    tiny_par: TinyPar,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    folder = copied(tiny_par, tmp_path / "export")
    spec = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(spec | changes))
    with pytest.raises(error, match=message):
        Generator.open(folder, verify=False)
