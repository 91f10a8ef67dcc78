"""Images of PAR, LlamaGen and RAR against the published loops in float64, without a cache."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arvg_trt.errors import BundleError, GenerationError, WorkspaceError
from arvg_trt.runtime.generator import Generator, choose_sampling
from arvg_trt.runtime.sampling import Sampling, image_streams

from ...runtime.test_generator import pictures
from ..par.models import SMALL
from .graphs import change, copied
from .models import TinyExported
from .token_families import RAR, TokenFamily

LABELS = [4, 0, 2]
LENGTH, CODES = SMALL.length, SMALL.vocab_size
Choose = Callable[[np.ndarray], np.ndarray]
LLAMAS = pytest.mark.parametrize("family", ["par", "llamagen"], indirect=True)
pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def opened(workspace: Path) -> Generator:
    return Generator.open(workspace, threads=1)


@pytest.fixture
def generator(tiny: TinyExported) -> Generator:
    return opened(tiny.workspace)


def raster(tokens: np.ndarray, group: int) -> np.ndarray:
    """PAR's official reshaping of [B, L] to maps [B, side, side]; of groups of one, the others'."""
    s = math.isqrt(group)
    m = math.isqrt(tokens.shape[1]) // s
    return tokens.reshape(-1, m, m, s, s).transpose(0, 3, 1, 4, 2).reshape(-1, m * s, m * s)


def guided(
    family: TokenFamily, conditional: torch.Tensor, unconditional: torch.Tensor, step: int, **asked
) -> torch.Tensor:
    """The official formulas: LlamaGen's guidance is only above 1, RAR's rises with the tokens."""
    g = asked["cfg"]
    if family is RAR:
        scale = (1 - math.cos((step / LENGTH) ** asked["cfg_power"] * math.pi)) / 2
        g = 1 if g == 0 else (g - 1) * scale + 1
    elif g <= 1:
        g = 1
    return unconditional + (conditional - unconditional) * g


def generate_uncached(
    family: TokenFamily, tiny: TinyExported, choose: Choose, **asked: float
) -> tuple[np.ndarray, np.ndarray]:  # images [B, 3, H, W], tokens [B, L]
    """Every call runs all positions again, the unknown ones being token 0, in float64."""
    transformer, tokenizer = (copy.deepcopy(m).double() for m in (tiny.transformer, tiny.tokenizer))
    count, group = len(LABELS), family.group
    rows = torch.tensor([*LABELS, *[family.config.num_classes] * count])
    tokens = torch.zeros(count, LENGTH, dtype=torch.int64)
    for a, b in pairwise([*range(group), *range(group, LENGTH + 1, group)]):
        logits = transformer(rows, tokens[:, : family.shown].repeat(2, 1))[:, a:b]
        found = guided(family, logits[:count], logits[count:], a, **asked)
        tokens[:, a:b] = torch.from_numpy(choose(found.numpy()))
    image = tokenizer.decode(torch.from_numpy(raster(tokens.numpy(), group)))
    return image.numpy(), tokens.numpy()


def greedy(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=2)


class Drawn:
    """torch.multinomial's arg-max of p / E, of what top-k and then top-p keep; noise by image."""

    def __init__(
        self, seed: int, temperature: float, top_k: int = 0, top_p: float = 1.0, **_: float
    ) -> None:
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


RISING = [(0.0, 0.0), (1.0, 1.0), (4.0, 0.0), (16.0, 2.75), (6.9, 1.5)]


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        *((name, {"cfg": g}) for name in ("par", "llamagen") for g in (0.0, 0.5, 1.0, 1.5, 4.0)),
        *(("rar", {"cfg": g, "cfg_power": power}) for g, power in RISING),
    ],
    indirect=["family"],
    ids=str,
)
def test_greedy_tokens_and_images_are_those_of_the_published_loop(
    family: TokenFamily, tiny: TinyExported, generator: Generator, asked: dict[str, float]
) -> None:
    images, tokens = generate_uncached(family, tiny, greedy, **asked)
    found = generator.generate(LABELS, greedy=True, **asked)
    assert np.array_equal(found.tokens, tokens) and found.tokens.dtype == np.int32
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1
    assert len(np.unique(tokens)) > 8  # the model does not always say the same


ALL = {"top_k": 0, "top_p": 1.0}
LLAMA_DRAWS: list[dict[str, Any]] = [
    {"seed": 0, "temperature": 1.0, **ALL},
    {"seed": 1, "temperature": 0.7, **ALL},
    {"seed": 2, "temperature": 1.0, "top_k": 7, "top_p": 1.0},
    {"seed": 3, "temperature": 1.3, "top_k": 20, "top_p": 0.8},
    {"seed": 4, "temperature": 1.0, "top_k": 0, "top_p": 0.5},
]
RAR_DRAWS = [(0, 1.0), (1, 1.02), (2, 0.5), (3, 3.0)]


@pytest.mark.parametrize(
    ("family", "asked"),
    [
        *(("par", {"cfg": 1.5, **draw}) for draw in LLAMA_DRAWS),
        *(("llamagen", {"cfg": 1.5, **draw}) for draw in LLAMA_DRAWS[:-1]),
        *(
            ("rar", {"cfg": 4.0, "cfg_power": 1.5, "seed": seed, "temperature": temperature})
            for seed, temperature in RAR_DRAWS
        ),
    ],
    indirect=["family"],
    ids=str,
)
def test_drawn_tokens_are_those_of_the_published_loop(
    family: TokenFamily, tiny: TinyExported, generator: Generator, asked: dict[str, Any]
) -> None:
    images, tokens = generate_uncached(family, tiny, Drawn(**asked), **asked)
    found = generator.generate(LABELS, **asked)
    assert np.array_equal(found.tokens, tokens)
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1


@LLAMAS
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


def test_progress_tells_every_step(family: TokenFamily, generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    generator.generate(
        LABELS, batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    steps = generator.spec.steps
    assert steps == {"par": 7, "llamagen": LENGTH, "rar": LENGTH}[family.name]
    assert seen == [(k, 2 * steps) for k in range(1, 2 * steps + 1)]


OWN = {
    "par": Sampling(cfg=1.5, top_k=0, top_p=1.0),
    "llamagen": Sampling(cfg=1.5, top_k=0, top_p=1.0),
    # The demonstration's, for a size that is not published.
    "rar": Sampling(cfg=4.0, top_k=0, top_p=1.0, temperature=1.0, cfg_power=0.0),
}


def test_own_sampling_is_the_official_samplers(family: TokenFamily, generator: Generator) -> None:
    assert choose_sampling(generator.spec) == OWN[family.name]
    assert generator.spec.length == LENGTH


def test_top_k_of_one_is_greedy(generator: Generator) -> None:
    drawn = generator.generate(LABELS, top_k=1, seed=5)
    assert np.array_equal(drawn.tokens, generator.generate(LABELS, greedy=True).tokens)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("par", {"temperature": 0.0}, "temperature is 0.0, not above 0"),
        ("par", {"cfg_power": 1.0}, "cfg_power is not this family's"),
        ("par", {"cfg": -1.0}, "cfg is -1.0"),
        ("par", {"top_k": CODES + 1}, "top_k is 49"),
        ("par", {"top_p": 0.0}, "top_p is 0.0"),
        ("rar", {"temperature": 0.0}, "temperature is 0.0, not above 0"),
        ("rar", {"temperature": math.nan}, "temperature is nan"),
        ("rar", {"cfg_power": -1.0}, "cfg_power is -1.0, not 0 or more"),
        ("rar", {"cfg": -1.0}, "cfg is -1.0"),
        ("rar", {"top_k": CODES + 1}, "top_k is 49"),
    ],
    indirect=["family"],
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


def not_a_number(rows: slice) -> Callable[[np.ndarray], np.ndarray]:
    def new(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[rows] = np.nan
        return values

    return new


@pytest.mark.parametrize(
    ("family", "table", "rows", "step"),
    [
        # The special tokens; the tokens of images; the position that predicts token 4.
        ("par", SMALL.special_tokens + SMALL.special, slice(SMALL.special_tokens, None), 4),
        ("llamagen", CODES + SMALL.num_classes + 1, slice(CODES), 1),
        ("rar", RAR.config.positions, slice(5, 6), 4),
    ],
    indirect=["family"],
    ids=["par", "llamagen", "rar"],
)
def test_logits_that_are_not_finite_are_refused_by_step(
    tiny: TinyExported, tmp_path: Path, table: int, rows: slice, step: int
) -> None:
    folder = copied(tiny.folder, tmp_path / "export")
    change(folder / "step.onnx", [table, SMALL.width], not_a_number(rows))
    message = rf"logits of step {step} are not finite, first at token 0 of image 0"
    with pytest.raises(GenerationError, match=message) as error:
        Generator.open(folder, verify=False).generate([0])
    assert str(error.value.where).endswith("step.onnx")


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *(("par", n) for n in ("step", "decoder")),
        *(("rar", n) for n in ("condition", "step", "decoder")),
    ],
    indirect=["family"],
)
def test_missing_graph_is_refused_by_its_name(
    tiny: TinyExported, tmp_path: Path, name: str
) -> None:
    folder = copied(tiny.folder, tmp_path / "export")
    (folder / f"{name}.onnx").unlink()
    with pytest.raises(BundleError, match=rf"{name}\.onnx missing"):
        Generator.open(folder, verify=False)


DEEPER = ({"depth": 3}, BundleError, r"lacks past_key\.2, past_value\.2")


@pytest.mark.parametrize(
    ("family", "changes", "error", "message"),
    [
        ("par", {"group": 0}, WorkspaceError, "group"),
        ("par", {"family": "rar"}, WorkspaceError, "cfg_power"),
        ("par", *DEEPER),
        ("par", {"kv_type": "float16"}, BundleError, "is float32, not float16"),
        ("llamagen", {"side": 0}, WorkspaceError, "side"),
        ("llamagen", *DEEPER),
        ("llamagen", {"vocab_size": 47}, BundleError, "logits of 48 tokens"),
        ("rar", {"side": 0}, WorkspaceError, "side"),
        ("rar", {"defaults": {"cfg": 1.0, **ALL}}, WorkspaceError, "cfg_power"),
        ("rar", {"family": "var"}, WorkspaceError, "patch_nums"),
        ("rar", *DEEPER),
    ],
    indirect=["family"],
)
def test_description_that_does_not_fit_is_refused(
    tiny: TinyExported,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    folder = copied(tiny.folder, tmp_path / "export")
    spec = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(spec | changes))
    with pytest.raises(error, match=message):
        Generator.open(folder, verify=False)
