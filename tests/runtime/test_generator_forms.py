"""Generators of graphs with fixed shapes and with float16 caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvg_trt.errors import BundleError
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import reference_session

from ..families.var.toy_var import SIDES, ToyVar

TOY = ToyVar()
LABELS = [1, 3, 0]


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Generator:
    return Generator.open(TOY.save(tmp_path_factory.mktemp("dynamic")), verify=False)


@pytest.mark.parametrize("cfg", [0.0, 1.5])
@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("static_batch", [1, 2, 4])
def test_fixed_shapes_draw_the_tokens_of_dynamic_ones(
    dynamic: Generator, tmp_path: Path, static_batch: int, greedy: bool, cfg: float
) -> None:
    """Three images: batches that are full, or filled up with images that nobody sees."""
    static = Generator.open(TOY.save(tmp_path, static_batch=static_batch), verify=False)
    wanted = dynamic.generate(LABELS, seed=5, cfg=cfg, greedy=greedy)
    found = static.generate(LABELS, seed=5, cfg=cfg, greedy=greedy)
    assert np.array_equal(found.tokens, wanted.tokens)
    assert np.array_equal(found.images, wanted.images)


def test_fixed_batch_is_the_most_at_once(tmp_path: Path) -> None:
    static = Generator.open(
        TOY.save(tmp_path, static_batch=2), session=reference_session, verify=False
    )
    seen: list[tuple[int, int]] = []
    static.generate([0] * 5, batch_size=4, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (3 * len(SIDES), 3 * len(SIDES))
    static.generate([0] * 5, batch_size=1, progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (5 * len(SIDES), 5 * len(SIDES))


def test_missing_step_of_a_scale_is_refused_by_name(tmp_path: Path) -> None:
    TOY.save(tmp_path, static_batch=2)
    (tmp_path / "step.1.onnx").unlink()
    with pytest.raises(BundleError, match=r"step\.1\.onnx missing"):
        Generator.open(tmp_path, verify=False)


@pytest.mark.parametrize("static_batch", [None, 2])
def test_float16_caches_are_rounded_and_change_few_tokens(
    dynamic: Generator, tmp_path: Path, static_batch: int | None
) -> None:
    labels = [0, 1, 2, 3, 4] * 8
    half = Generator.open(
        TOY.save(tmp_path, kv_type="float16", static_batch=static_batch), verify=False
    )
    wanted, found = dynamic.generate(labels, seed=2), half.generate(labels, seed=2)
    assert np.mean(found.tokens == wanted.tokens) > 0.97


@pytest.mark.parametrize("static_batch", [None, 2])
def test_caches_of_another_type_than_described_are_refused(
    tmp_path: Path, static_batch: int | None
) -> None:
    TOY.save(tmp_path, kv_type="float16", static_batch=static_batch)
    spec = tmp_path / "generator.json"
    spec.write_text(spec.read_text().replace("float16", "float32"))
    with pytest.raises(BundleError, match=r"step.*_key\.0 is float16, not float32"):
        Generator.open(tmp_path, verify=False)
