from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from arvg_trt.errors import BundleError, GenerationError, OutOfMemory, WorkspaceError
from arvg_trt.runtime.generator import Generator, choose_sampling
from arvg_trt.runtime.sampling import image_streams
from arvg_trt.runtime.sessions.open import reference_session

from ..families.var.toy_var import (
    CHANNELS,
    CLASSES,
    DEFAULTS,
    IMAGE,
    LENGTH,
    SIDES,
    SIZE,
    VOCAB,
    ToyVar,
    ints,
    save,
)
from .test_sampling import token_by_definition

TOY = ToyVar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TOY.save(tmp_path_factory.mktemp("toy") / "export")


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return Generator.open(folder, threads=1, verify=False)


def pictures(image: np.ndarray) -> np.ndarray:
    """[-1, 1] [N, 3, H, W] to uint8 [N, H, W, 3]."""
    levels = np.round((np.clip(image, -1, 1) + 1) * 127.5)
    return levels.transpose(0, 2, 3, 1).astype(np.uint8)


def greedy(scale: int, logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=-1)


class Drawn:
    """A draw a row by the definition; the noise is that of the seed, image by image."""

    def __init__(self, seed: int, count: int, k: int, p: float) -> None:
        self.streams = image_streams(seed, 0, count)
        self.k, self.p = k, p

    def __call__(self, scale: int, logits: np.ndarray) -> np.ndarray:
        noise = [stream.standard_exponential(logits.shape[1:]) for stream in self.streams]
        return np.array(
            [
                [token_by_definition(*pair, self.k, self.p) for pair in zip(rows, e, strict=True)]
                for rows, e in zip(logits, noise, strict=True)
            ]
        )


@pytest.mark.parametrize("cfg", [0.0, 1.5, 4.0])
def test_greedy_tokens_and_images_are_those_of_the_formulas(
    generator: Generator, cfg: float
) -> None:
    labels = [0, 4, 2, 2]
    images, tokens = TOY.generate(labels, greedy, cfg)
    found = generator.generate(labels, cfg=cfg, greedy=True)
    assert np.array_equal(found.tokens, tokens) and found.tokens.dtype == np.int32
    assert found.images.shape == (4, IMAGE, IMAGE, 3) and found.images.dtype == np.uint8
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1
    assert found.labels.tolist() == labels
    assert len(np.unique(tokens)) > 4  # guards against a toy that always says the same


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_drawn_tokens_are_those_of_the_definition(generator: Generator, seed: int) -> None:
    labels = [1, 3, 0]
    choose = Drawn(seed, 3, DEFAULTS["top_k"], DEFAULTS["top_p"])
    _, tokens = TOY.generate(labels, choose, DEFAULTS["cfg"])
    assert np.array_equal(generator.generate(labels, seed=seed).tokens, tokens)


def test_options_take_the_place_of_the_models_own(generator: Generator) -> None:
    _, tokens = TOY.generate([1, 3], Drawn(3, 2, 3, 0.5), 0.7)
    found = generator.generate([1, 3], seed=3, cfg=0.7, top_k=3, top_p=0.5)
    assert np.array_equal(found.tokens, tokens)


def test_images_do_not_depend_on_the_batch_size(generator: Generator) -> None:
    labels = [0, 1, 2, 3, 4, 0, 0]
    whole = generator.generate(labels, seed=1, batch_size=7)
    for size in (1, 3, 100):
        parts = generator.generate(labels, seed=1, batch_size=size)
        assert np.array_equal(parts.tokens, whole.tokens)
        assert np.array_equal(parts.images, whole.images)
    assert not np.array_equal(whole.tokens[0], whole.tokens[5])  # the same label, another image


def test_seed_decides(generator: Generator) -> None:
    once, again, other = (generator.generate([0, 1], seed=s).tokens for s in (0, 0, 1))
    assert np.array_equal(once, again) and not np.array_equal(once, other)


def test_first_images_stay_when_more_are_asked_for(generator: Generator) -> None:
    few, more = generator.generate([2, 3], seed=9), generator.generate([2, 3, 4], seed=9)
    assert np.array_equal(few.tokens, more.tokens[:2])


def test_reference_session_draws_the_same(folder: Path, generator: Generator) -> None:
    reference = Generator.open(folder, session=reference_session, verify=False)
    assert np.array_equal(
        reference.generate([0, 4], seed=2).tokens, generator.generate([0, 4], seed=2).tokens
    )


def test_progress_counts_the_steps_of_all_batches(generator: Generator) -> None:
    seen: list[tuple[int, int]] = []
    generator.generate([0] * 5, batch_size=2, progress=lambda *counts: seen.append(counts))
    assert seen == [(k + 1, 3 * len(SIDES)) for k in range(3 * len(SIDES))]


def test_batches_come_one_at_a_time(generator: Generator) -> None:
    sampling = choose_sampling(generator.spec)
    parts = list(generator.batches([0, 1, 2], seed=4, sampling=sampling, batch_size=2))
    whole = generator.generate([0, 1, 2], seed=4)
    assert [len(p.labels) for p in parts] == [2, 1]
    assert np.array_equal(np.concatenate([p.tokens for p in parts]), whole.tokens)
    assert np.array_equal(np.concatenate([p.images for p in parts]), whole.images)


def test_workspace_is_opened_at_its_export(folder: Path) -> None:
    assert Generator.open(folder.parent, verify=False).spec.length == LENGTH
    assert Generator.open(str(folder), verify=False).spec.vocab_size == VOCAB


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, CLASSES], "labels out of range: 5 .*classes are 0 to 4"),
        ([-1], "out of range: -1"),
        (list(range(5, 30)), r"out of range: 5, 6, 7, 8, 9, 10, 11, 12, \.\.\."),
        ([], r"labels of shape \(0,\)"),
        ([[1]], r"labels of shape \(1, 1\)"),
        (3, r"labels of shape \(\)"),
        ([1.5], "type float64"),
        ([True], "type bool"),
    ],
)
def test_labels_that_are_no_classes_are_refused(
    generator: Generator, labels: object, message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        generator.generate(labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cfg": -1.0}, "cfg is -1.0"),
        ({"top_k": VOCAB + 1}, r"top_k is 13, not 0 \(all\) to 12"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"temperature": -1.0}, "temperature is -1.0, not above 0"),
        ({"cfg_power": 1.0}, "it takes cfg, temperature, top_k, top_p"),
        ({"batch_size": 0}, "batch_size is 0, not 1 or more"),
        ({"seed": -1}, "seed is -1, not 0 or more"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_runs(
    generator: Generator, options: dict[str, float], message: str
) -> None:
    seen: list[int] = []
    with pytest.raises(GenerationError, match=message):
        generator.generate([0], progress=lambda *_: seen.append(1), **options)
    assert not seen


@pytest.mark.parametrize(
    ("scale", "value", "first"), [(0, np.nan, 0), (1, np.nan, 3), (2, np.inf, 4), (2, np.nan, 0)]
)
@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_logits_that_are_not_finite_are_refused_by_scale(
    tmp_path: Path, scale: int, value: float, first: int, cfg: float
) -> None:
    broken = ToyVar()
    broken.positions[sum(s * s for s in SIDES[:scale]) + first] = value
    generator = Generator.open(broken.save(tmp_path), verify=False)
    side = SIDES[scale]
    message = rf"scale {scale} \({side}x{side} tokens\) are not finite, first at token {first} of"
    with pytest.raises(GenerationError, match=message) as caught:
        generator.generate([0], cfg=cfg)
    assert str(caught.value.where).endswith("step.onnx")


@pytest.mark.parametrize(
    "name", ["condition", "step", "update.0", "update.1", "update.2", "decoder"]
)
def test_missing_graph_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    TOY.save(tmp_path)
    (tmp_path / f"{name}.onnx").unlink()
    with pytest.raises(BundleError, match=re.escape(f"{name}.onnx missing")):
        Generator.open(tmp_path, verify=False)


def test_folder_without_a_generator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        WorkspaceError, match="holds no model, where a generator of images is wanted"
    ):
        Generator.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gan"}, "no family named 'gan'"),
        ({"schema": "arvg-trt/generator/v9"}, "v9"),
        ({"patch_nums": []}, "patch_nums"),
        ({"patch_nums": [0, 1]}, "patch_nums"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"defaults": {"cfg": 1.5}}, "top_k"),
    ],
)
def test_description_that_is_not_understood_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(WorkspaceError, match=message):
        Generator.open(TOY.save(tmp_path, **changes), verify=False)


@pytest.mark.parametrize(
    ("depth", "message"), [(3, r"lacks past_key\.2, past_value\.2"), (1, "caches beyond 1 blocks")]
)
def test_graph_with_other_caches_is_refused(tmp_path: Path, depth: int, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Generator.open(TOY.save(tmp_path, depth=depth), verify=False)


def test_graph_of_other_shapes_is_refused_with_them(tmp_path: Path) -> None:
    generator = Generator.open(TOY.save(tmp_path, head_dim=4, width=8), verify=False)
    with pytest.raises(BundleError, match=r"refused .*past_key\.0 \[2, 2, 0, 4\]"):
        generator.generate([0])


def test_out_of_memory_is_named(tmp_path: Path) -> None:
    """A decoder whose image has 2^50 rows."""
    TOY.save(tmp_path)
    nodes = [
        helper.make_node("ReduceMean", ["latent", "axes"], ["mean"]),
        helper.make_node("Expand", ["mean", "shape"], ["image"]),
    ]
    latent = {"latent": ("float", ["n", CHANNELS, SIZE, SIZE])}
    constants = {"axes": ints(2, 3), "shape": ints(1, 1, 2**50, 1)}
    save(tmp_path / "decoder.onnx", nodes, latent, ["image"], constants)
    generator = Generator.open(tmp_path, verify=False)
    with pytest.raises(OutOfMemory, match=r"out of memory .*smaller batch") as caught:
        generator.generate([0])
    assert str(caught.value.where).endswith("decoder.onnx")


def test_memory_that_numpy_lacks_is_named(generator: Generator, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("arvg_trt.runtime.loop.exponential_noise", refuse)
    with pytest.raises(OutOfMemory, match="out of memory with 2 images at once"):
        generator.generate([0, 1])


def test_runtime_generates_without_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom arvg_trt.runtime.generator import Generator\n"
        f"Generator.open({str(folder)!r}, verify=False).generate([0])\n"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
