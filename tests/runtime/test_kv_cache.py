from __future__ import annotations

import numpy as np
import pytest

from arvg_trt.errors import BundleError, GenerationError
from arvg_trt.runtime.kv_cache import KvCache, require_caches
from arvg_trt.runtime.sessions.open import fast_session
from arvg_trt.runtime.sessions.session import Session

from ..families.var.toy_var import DEPTH, HEAD_DIM, HEADS, WIDTH, ToyVar

TOY = ToyVar()
NAMES = {f"past_{kind}.{i}" for kind in ("key", "value") for i in range(DEPTH)}


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return fast_session(TOY.save(tmp_path_factory.mktemp("toy")) / "step.onnx", 1)


def empty(step: Session, rows: int) -> KvCache:
    return KvCache.empty(step, (rows, HEADS, 0, HEAD_DIM))


def feeds(rows: int, n: int, first: int, seed: int = 0) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(rows, n, WIDTH)).astype(np.float32)
    labels = np.arange(rows)
    return {
        "x": x,
        "position_ids": np.arange(first, first + n),
        "modulation": TOY.modulation[labels],
        "head_modulation": TOY.head_modulation[labels],
    }


def test_empty_cache_has_no_tokens(step: Session) -> None:
    cache = empty(step, 3)
    assert (cache.rows, cache.length) == (3, 0)
    found = cache.feeds(3)
    assert set(found) == NAMES
    assert all(list(value.shape()) == [3, HEADS, 0, HEAD_DIM] for value in found.values())


def test_cached_steps_are_the_formulas(step: Session) -> None:
    cache = empty(step, 3)
    past = [np.zeros((3, 0, WIDTH))] * DEPTH
    first = 0
    for n in (1, 4, 2):
        fed = feeds(3, n, first, seed=n)
        outputs = step.run_on_device({**fed, **cache.feeds(3)})
        wanted = TOY.step(fed["x"].astype(np.float64), first, np.arange(3), past)
        np.testing.assert_allclose(outputs["logits"].numpy(), wanted, rtol=1e-4, atol=1e-4)
        cache = cache.after(outputs, n)
        first += n
    assert cache.length == 7
    key = cache.feeds(3)["past_key.1"].numpy().transpose(0, 2, 1, 3).reshape(3, 7, WIDTH)
    np.testing.assert_allclose(key, past[1], rtol=1e-4, atol=1e-4)


def test_present_values_are_the_next_past_without_a_copy(step: Session) -> None:
    cache = empty(step, 2)
    outputs = step.run_on_device({**feeds(2, 3, 0), **cache.feeds(2)})
    bound = cache.after(outputs, 3).feeds(2)
    for name in NAMES:
        assert bound[name] is outputs[name.replace("past", "present")]


@pytest.mark.parametrize("rows", [1, 4])
def test_cache_of_another_batch_is_refused(step: Session, rows: int) -> None:
    cache = empty(step, 2)
    cache = cache.after(step.run_on_device({**feeds(2, 3, 0), **cache.feeds(2)}), 3)
    message = f"KV cache holds 2 rows after 3 tokens, the step has {rows}"
    with pytest.raises(GenerationError, match=message):
        cache.feeds(rows)


def test_graph_needs_a_cache_for_every_block(step: Session) -> None:
    require_caches(step, DEPTH)
    with pytest.raises(BundleError, match=r"step\.onnx: lacks past_key\.2, past_value\.2, present"):
        require_caches(step, DEPTH + 1)
    with pytest.raises(BundleError, match="caches beyond 1 blocks"):
        require_caches(step, DEPTH - 1)


def test_graph_with_caches_of_another_type_is_refused(step: Session) -> None:
    with pytest.raises(BundleError, match=r"step\.onnx: past_key\.0 is float32, not float16"):
        require_caches(step, DEPTH, "float16")
