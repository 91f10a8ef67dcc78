"""DGC's distances against the formulas in plain numpy, and which rows they keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.dgc import block_output, choose_rows, distances, first_token_features
from arvg_trt.errors import CalibrationError
from arvg_trt.graph.builder import add_node, constant
from arvg_trt.graph.sites import Site
from arvg_trt.samples.files import save_sample

from ..families.generators import VAR, TinyGenerator
from ..families.rar.models import random_rar
from ..families.shared.models import random_tokens
from ..families.tiny import silent
from ..families.var.models import features_of, random_var


def spread(rows: int, features: int, seed: int = 0) -> np.ndarray:
    """Correlated rows with a mean."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(features, features)) * 10 ** rng.uniform(-1, 1, features)
    return rng.normal(size=(rows, features)) @ mix + rng.normal(size=features)


def published(x: np.ndarray) -> np.ndarray:
    """Mahalanobis by its definition, a row at a time."""
    inverse = np.linalg.pinv(np.cov(x, rowvar=False))
    return np.array([np.sqrt((r - x.mean(0)) @ inverse @ (r - x.mean(0))) for r in x])


def shrunk(x: np.ndarray) -> np.ndarray:
    """The same under Ledoit and Wolf's covariance, all matrices written out."""
    n, p = x.shape
    c = x - x.mean(0)
    s = c.T @ c / n
    m = np.trace(s) / p
    d2 = np.sum((s - m * np.eye(p)) ** 2) / p
    b2 = min(sum(np.sum((np.outer(r, r) - s) ** 2) for r in c) / p / n**2, d2)
    full = (1 - b2 / d2) * s + b2 / d2 * m * np.eye(p)
    return np.sqrt(np.einsum("ni,ij,nj->n", c, np.linalg.inv(full), c))


@pytest.mark.parametrize("rows", [12, 40])
def test_distances_are_mahalanobis_as_published(rows: int) -> None:
    x = spread(rows, 8)
    found, covariance = distances(x)
    assert covariance == "pseudo-inverse"
    np.testing.assert_allclose(found, published(x), rtol=1e-9)


@pytest.mark.parametrize("features", [19, 64])
def test_too_few_samples_shrink_the_covariance(features: int) -> None:
    x = spread(20, features)
    np.testing.assert_allclose(published(x), 19 / np.sqrt(20), rtol=1e-6)  # says nothing
    found, covariance = distances(x)
    assert covariance == "shrunk"
    np.testing.assert_allclose(found, shrunk(x), rtol=1e-9)
    assert found.std() > 0.01 * found.mean()


def test_repeated_rows_count_once_for_the_covariance() -> None:
    """Fifty rows, but of five classes, span no more than five rows do."""
    x = np.repeat(spread(5, 8), 10, axis=0)
    found, covariance = distances(x)
    assert covariance == "shrunk"
    np.testing.assert_allclose(found, shrunk(x), rtol=1e-9)


def test_equal_rows_have_no_distance() -> None:
    x = np.repeat(spread(1, 8), 6, axis=0)
    x += 1e-7 * np.random.default_rng(0).normal(size=x.shape)  # what float32 leaves
    assert np.array_equal(distances(x)[0], np.zeros(6))


def test_dead_features_and_zeros_change_nothing() -> None:
    x = spread(40, 8)
    dead = np.concatenate([x, np.zeros((40, 3)), np.full((40, 1), 7.0)], axis=1)
    np.testing.assert_allclose(distances(dead)[0], distances(x)[0], rtol=1e-9)
    assert np.array_equal(distances(np.zeros((5, 4)))[0], np.zeros(5))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_order_and_place_of_the_rows_do_not_matter(seed: int, few: bool) -> None:
    rng = np.random.default_rng(seed)
    x = spread(10 if few else 40, 16, seed)
    order = rng.permutation(len(x))
    moved = x[order] + rng.normal(size=16)
    np.testing.assert_allclose(distances(moved)[0], distances(x)[0][order], rtol=1e-6)


def halves(count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Conditional rows with outliers, and null rows that hardly differ."""
    conditional = spread(count, 6)
    conditional[[3, 17]] *= 9
    return conditional, np.repeat(spread(1, 6, 5), count, axis=0)


def test_ratio_of_the_far_rows_keeps_the_first_ones() -> None:
    conditional, null = spread(30, 6), spread(30, 6, 1)
    far = np.argsort(-np.concatenate([published(conditional), published(null)]))[:20]
    share = np.mean(far < 30)
    choice = choose_rows(conditional, null, 20, "ratio")
    assert 0 < share < 1 and choice.share == share and not choice.agree
    assert choice.conditional.tolist() == list(range(round(20 * share)))
    assert choice.null.tolist() == list(range(20 - round(20 * share)))


def test_selection_by_distance_keeps_the_far_rows_themselves() -> None:
    conditional, null = spread(30, 6), spread(30, 6, 1)
    far = np.argsort(-np.concatenate([published(conditional), published(null)]))[:20]
    choice = choose_rows(conditional, null, 20, "distance")
    assert set(choice.conditional) == {k for k in far if k < 30}
    assert set(choice.null) == {k - 30 for k in far if k >= 30}


def test_null_rows_that_are_alike_are_not_kept() -> None:
    conditional, null = halves()
    choice = choose_rows(conditional, null, 30, "ratio")
    assert choice.share == 1.0 and len(choice.null) == 0
    by_distance = choose_rows(conditional, null, 2, "distance")
    assert (
        by_distance.conditional.tolist()
        == np.sort(np.argsort(-published(conditional))[:2]).tolist()
    )


@pytest.mark.parametrize("selection", ["ratio", "distance"])
@pytest.mark.parametrize("keep", [7, 20, 60])
def test_halves_that_agree_are_kept_alike(selection: str, keep: int) -> None:
    rows = spread(30, 6)
    choice = choose_rows(rows, rows + 5, keep, selection)  # type: ignore[arg-type]
    assert choice.agree
    assert len(choice.conditional) + len(choice.null) == keep
    assert len(choice.conditional) - len(choice.null) in (0, 1)


@pytest.mark.parametrize(
    ("rows", "keep", "words"), [(1, 1, "too few for a covariance"), (5, 11, "11 rows cannot")]
)
def test_too_few_candidates_are_refused(rows: int, keep: int, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        choose_rows(spread(rows, 4), spread(rows, 4), keep, "ratio")


def block_outputs(model: torch.nn.Module, block: torch.nn.Module, *inputs: torch.Tensor):  # type: ignore[no-untyped-def]
    """Return what a block of the PyTorch model gives for the first token."""
    seen: list[torch.Tensor] = []
    hook = block.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    with torch.no_grad():
        model(*inputs)
    hook.remove()
    return seen[-1][:, 0].double().numpy()


def features_in(source: TinyGenerator, samples: Path) -> np.ndarray:
    return first_token_features(
        CalibrationRun(source.folder, samples, (source.full_sites[0].graph,), 2, silent),
        source.full_sites,
    )


def near(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_features_of_a_var_are_its_last_blocks(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    model, shown = random_var(VAR), features_of(VAR, 3)
    labels = torch.tensor([0, 4, 5])
    for k in range(3):
        save_sample(
            {"labels": labels[k : k + 1].numpy(), "features": shown[k : k + 1].numpy()}, tmp_path, k
        )
    near(features_in(tiny_var, tmp_path), block_outputs(model, model.blocks[-1], labels, shown))


def test_features_of_a_rar_are_its_last_blocks(
    tiny_rar_graphs: TinyGenerator, tmp_path: Path
) -> None:
    model = random_rar()
    config = model.config
    tokens = random_tokens(config, 3, config.length - 1)
    labels = torch.tensor([0, 1, config.num_classes])
    for k in range(3):
        row = {"labels": labels[k : k + 1].numpy(), "tokens": tokens[k : k + 1].numpy()}
        save_sample(row, tmp_path, k)
    near(
        features_in(tiny_rar_graphs, tmp_path),
        block_outputs(model, model.blocks[-1], labels, tokens),
    )


def test_the_last_block_of_a_par_has_no_gate() -> None:
    """Its sum is found by the same walk: w2, then the residual."""
    graph = ir.Graph([], [], nodes=[], name="par")
    made = ir.Value(name="x", shape=ir.Shape(["n", 3, 4]))
    graph.inputs.append(made)
    held = constant(graph, "b", np.zeros(4, np.float32))
    product = add_node(graph, "Identity", [made], "w2")
    biased = add_node(graph, "Add", [product, held], "biased")
    total = add_node(graph, "Add", [made, biased], "total")
    add_node(graph, "Identity", [total], "norm")
    site = Site(
        name="layers.0.feed_forward.w2",
        graph="full",
        role="fc2",
        op="MatMul",
        node="w2",
        weight="w",
        bias=None,
        input="x",
        output="w2",
        weight_shape=(4, 4),
    )
    assert block_output(graph, [site]).name == "total"
