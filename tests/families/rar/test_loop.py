"""Images from exported graphs against the published loop in float64 PyTorch, without a cache."""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from arvg_trt.errors import BundleError, GenerationError, WorkspaceError
from arvg_trt.families.rar.loop import strength
from arvg_trt.families.rar.spec import ROWS_AHEAD
from arvg_trt.runtime.generator import Generator, choose_sampling
from arvg_trt.runtime.sampling import Sampling, image_streams

from ...runtime.test_generator import pictures
from .models import SMALL, TinyRar

LABELS = [4, 0, 2]
LENGTH, SIDE = SMALL.length, SMALL.side
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def generator(tiny_rar: TinyRar) -> Generator:
    return Generator.open(tiny_rar.workspace, threads=1)


def generate_uncached(
    rar: TinyRar, choose, g: float, power: float
) -> tuple[np.ndarray, np.ndarray]:  # images [B, 3, H, W], tokens [B, L]
    """Every token runs all before it again; the official formula of guidance, in float64."""
    transformer, tokenizer = (copy.deepcopy(m).double() for m in (rar.transformer, rar.tokenizer))
    count = len(LABELS)
    rows = torch.tensor([*LABELS, *[SMALL.num_classes] * count])
    tokens = torch.zeros(count, 0, dtype=torch.int64)
    for step in range(LENGTH):
        logits = transformer(rows, tokens.repeat(2, 1))[:, -1]
        scale = (1 - math.cos((step / LENGTH) ** power * math.pi)) / 2
        conditional, unconditional = logits[:count], logits[count:]
        if g != 0:
            c = (g - 1) * scale + 1
            conditional = unconditional + (conditional - unconditional) * c
        new = torch.from_numpy(choose(conditional.numpy()))
        tokens = torch.cat((tokens, new[:, None]), dim=1)
    image = tokenizer.decode(tokens.reshape(count, SIDE, SIDE))
    return image.numpy(), tokens.numpy()


def greedy(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1)


class Drawn:
    """torch.multinomial's arg-max of p / E, the noise being that of the seed, image by image."""

    def __init__(self, seed: int, count: int, temperature: float) -> None:
        self.streams = image_streams(seed, 0, count)
        self.temperature = temperature

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        noise = np.stack([s.standard_exponential(logits.shape[1]) for s in self.streams])
        p = np.exp((logits - logits.max(1, keepdims=True)) / self.temperature)
        return (p / noise).argmax(axis=1)


@pytest.mark.parametrize(
    ("g", "power"), [(0.0, 0.0), (1.0, 1.0), (4.0, 0.0), (16.0, 2.75), (6.9, 1.5)]
)
def test_greedy_tokens_and_images_are_those_of_the_published_loop(
    tiny_rar: TinyRar, generator: Generator, g: float, power: float
) -> None:
    images, tokens = generate_uncached(tiny_rar, greedy, g, power)
    found = generator.generate(LABELS, cfg=g, cfg_power=power, greedy=True)
    assert np.array_equal(found.tokens, tokens) and found.tokens.dtype == np.int32
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1
    assert len(np.unique(tokens)) > 8  # the model does not always say the same


@pytest.mark.parametrize(("seed", "temperature"), [(0, 1.0), (1, 1.02), (2, 0.5), (3, 3.0)])
def test_drawn_tokens_are_those_of_the_published_loop(
    tiny_rar: TinyRar, generator: Generator, seed: int, temperature: float
) -> None:
    choose = Drawn(seed, len(LABELS), temperature)
    images, tokens = generate_uncached(tiny_rar, choose, 4.0, 1.5)
    options = {"cfg": 4.0, "cfg_power": 1.5, "temperature": temperature}
    found = generator.generate(LABELS, seed=seed, **options)
    assert np.array_equal(found.tokens, tokens)
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1


def test_batches_of_other_sizes_give_the_same_tokens(generator: Generator) -> None:
    labels = [0, 1, 2, 3, 4]
    whole = generator.generate(labels, batch_size=5)
    for size in (1, 2):
        parts = generator.generate(labels, batch_size=size)
        assert np.array_equal(parts.tokens, whole.tokens)


def test_modulations_made_ahead_are_those_of_each_step(
    tiny_rar: TinyRar, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generator.generate(LABELS)
    for rows_ahead in (1, 7, 10**6):
        monkeypatch.setattr("arvg_trt.families.rar.loop.ROWS_AHEAD", rows_ahead)
        assert np.array_equal(generator.generate(LABELS).tokens, whole.tokens)
    assert 2 * len(LABELS) * 2 < ROWS_AHEAD < 2 * len(LABELS) * LENGTH  # several, not all


def test_own_sampling_is_the_demonstrations_for_a_size_that_is_not_published(
    generator: Generator,
) -> None:
    own = choose_sampling(generator.spec)
    assert own == Sampling(cfg=4.0, top_k=0, top_p=1.0, temperature=1.0, cfg_power=0.0)
    assert generator.spec.steps == generator.spec.length == LENGTH


def test_top_k_of_one_is_greedy(generator: Generator) -> None:
    drawn = generator.generate(LABELS, top_k=1, seed=5)
    assert np.array_equal(drawn.tokens, generator.generate(LABELS, greedy=True).tokens)


@pytest.mark.parametrize("power", [0.0, 1.2, 2.75])
def test_guidance_rises_from_none_to_almost_all(power: float) -> None:
    sampling = Sampling(cfg=16.0, top_k=0, top_p=1.0, cfg_power=power)
    found = np.array([strength(sampling, k, 256) for k in range(256)])
    assert np.all(np.diff(found) >= 0)
    if power == 0:  # 0 ** 0 is 1: all of it, always
        np.testing.assert_allclose(found, 15.0)
    else:
        assert found[0] == 0 and 14.9 < found[-1] < 15
    half = strength(sampling, 128, 256)
    assert half == pytest.approx(7.5 * (1 - math.cos(math.pi * 0.5**power)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0, not above 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"cfg_power": -1.0}, "cfg_power is -1.0, not 0 or more"),
        ({"cfg": -1.0}, "cfg is -1.0"),
        ({"top_k": SMALL.vocab_size + 1}, "top_k is 49"),
    ],
)
def test_options_out_of_range_are_refused(
    generator: Generator, options: dict[str, float], message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        generator.generate([0], **options)


def copied(rar: TinyRar, folder: Path) -> Path:
    shutil.copytree(rar.folder, folder)
    return folder


def test_logits_that_are_not_finite_are_refused_by_step(tiny_rar: TinyRar, tmp_path: Path) -> None:
    folder = copied(tiny_rar, tmp_path / "export")
    model = onnx.load(folder / "step.onnx")
    table = next(t for t in model.graph.initializer if t.dims == [SMALL.positions, SMALL.width])
    values = numpy_helper.to_array(table).copy()
    values[5] = np.nan  # the position that predicts token 4
    table.CopyFrom(numpy_helper.from_array(values, table.name))
    onnx.save(model, folder / "step.onnx")
    with pytest.raises(GenerationError, match=r"logits of step 4 are not finite.*image 0") as error:
        Generator.open(folder, verify=False).generate([0])
    assert str(error.value.where).endswith("step.onnx")


@pytest.mark.parametrize("name", ["condition", "step", "decoder"])
def test_missing_graph_is_refused_by_its_name(tiny_rar: TinyRar, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_rar, tmp_path / "export")
    (folder / f"{name}.onnx").unlink()
    with pytest.raises(BundleError, match=rf"{name}\.onnx missing"):
        Generator.open(folder, verify=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"side": 0}, "side"),
        ({"defaults": {"cfg": 1.0, "top_k": 0, "top_p": 1.0}}, "cfg_power"),
        ({"family": "var"}, "patch_nums"),
    ],
)
def test_description_that_is_not_understood_is_refused(
    tiny_rar: TinyRar, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = copied(tiny_rar, tmp_path / "export")
    spec = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(spec | changes))
    with pytest.raises(WorkspaceError, match=message):
        Generator.open(folder, verify=False)


def test_graph_with_other_caches_is_refused(tiny_rar: TinyRar, tmp_path: Path) -> None:
    folder = copied(tiny_rar, tmp_path / "export")
    spec = json.loads((folder / "generator.json").read_text())
    (folder / "generator.json").write_text(json.dumps(spec | {"depth": 3}))
    with pytest.raises(BundleError, match=r"lacks past_key\.2, past_value\.2"):
        Generator.open(folder, verify=False)
