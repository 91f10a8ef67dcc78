"""The check of the export: what it measures, what it refuses, which tokens it lets differ."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from arvg_trt.errors import ExportError
from arvg_trt.export.facts import TokenParity
from arvg_trt.export.parity import require_tokens
from arvg_trt.families.var_vqvae.parity import (
    TokenizerReferences,
    boundary_distance,
    check_tokenizer_parity,
    compute_tokenizer_references,
    may_differ,
)

from .models import TINY, TinyTokenizer, random_images, random_latent, random_vqvae

STARTS = (0, 1, 5, 14, 39, 75)


@pytest.fixture(scope="module")
def exported(tiny_tokenizer: TinyTokenizer) -> tuple[Path, TokenizerReferences]:
    images = [image.numpy() for image in random_images(TINY, 3).split(1)]
    model, word_embed = tiny_tokenizer.model, tiny_tokenizer.word_embed
    return tiny_tokenizer.folder, compute_tokenizer_references(model, word_embed, images)


def test_every_graph_is_compared_and_agrees(exported: tuple[Path, TokenizerReferences]) -> None:
    tokens, differences = check_tokenizer_parity(*exported)
    assert [(d.graph, d.tensor) for d in differences] == [
        ("encoder", "latent"),
        ("decoder", "image"),
        ("lookup", "latent"),
        ("lookup", "features"),
        ("update.0", "f_hat_next"),
        ("update.0", "x"),
        ("update.1", "f_hat_next"),
        ("update.1", "x"),
        ("update.2", "f_hat_next"),
        ("update.2", "x"),
        ("update.3", "f_hat_next"),
        ("update.3", "x"),
        ("update.4", "f_hat_next"),
    ]
    assert all(d.mean <= d.max < 1e-4 for d in differences)
    assert (tokens.tokens, tokens.differ) == (3 * 75, 0)


def test_references_are_the_models(exported: tuple[Path, TokenizerReferences]) -> None:
    model, wanted = random_vqvae(TINY), exported[1]
    codes = model.quantize.encode(model.encode(torch.from_numpy(wanted.images)))
    assert np.array_equal(codes.numpy(), wanted.indices)
    total, features = model.quantize.decode_with_features(codes)
    torch.testing.assert_close(total, torch.from_numpy(wanted.sums[-1]))
    torch.testing.assert_close(features, torch.from_numpy(wanted.features))


def changed_copy(folder: Path, target: Path, graph: str, initializer: str, by: float) -> None:
    """The export with `by` added to an initializer of one graph."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    model = onnx.load(folder / f"{graph}.onnx")
    values = next(t for t in model.graph.initializer if t.name == initializer)
    noise = np.random.default_rng(0).normal(by, by, tuple(values.dims)).astype(np.float32)
    changed = numpy_helper.to_array(values) + noise
    values.CopyFrom(numpy_helper.from_array(changed, initializer))
    onnx.save(model, target / f"{graph}.onnx")


@pytest.mark.parametrize(
    ("graph", "tensor", "initializer"),
    [
        ("encoder", "latent", "quant_conv.bias"),
        ("lookup", "latent", "quantize.quant_resi.qresi_ls.3.bias"),
        ("update.4", "f_hat_next", "quantize.quant_resi.qresi_ls.3.bias"),
        ("decoder", "image", "decoder.conv_out.bias"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    exported: tuple[Path, TokenizerReferences],
    tmp_path: Path,
    graph: str,
    tensor: str,
    initializer: str,
) -> None:
    changed_copy(exported[0], tmp_path, graph, initializer, 0.01)
    with pytest.raises(ExportError, match=rf"{graph}.onnx: {tensor} of ONNX Runtime differs"):
        check_tokenizer_parity(tmp_path, exported[1])


def test_tokens_that_differ_without_a_reason_are_refused(
    exported: tuple[Path, TokenizerReferences], tmp_path: Path
) -> None:
    changed_copy(exported[0], tmp_path, "encoder", "quantize.nearest.bias", 0.3)
    with pytest.raises(ExportError, match=r"encoder.onnx: \d+ of 225 tokens differ"):
        check_tokenizer_parity(tmp_path, exported[1])


def test_tokens_at_a_boundary_are_counted_and_let_pass() -> None:
    require_tokens(TokenParity(225, 2, 2))
    with pytest.raises(ExportError, match="1 of 225 tokens differ"):
        require_tokens(TokenParity(225, 2, 1))


def test_a_token_at_a_boundary_excuses_the_later_scales_of_its_image(
    exported: tuple[Path, TokenizerReferences],
) -> None:
    wanted = exported[1]
    distances = np.full_like(wanted.distances, 1.0)
    distances[1, 4] = 0.0  # in the second scale of the second image
    close = replace(wanted, distances=distances)
    none = np.zeros(distances.shape, bool)
    assert np.argwhere(may_differ(close, none, 1e-6)).tolist() == [[1, 4]]
    differs = none.copy()
    differs[1, 4] = True
    allowed = may_differ(close, differs, 1e-6)
    assert allowed[1, STARTS[2] :].all()
    assert allowed[1, : STARTS[2]].tolist() == [False] * 4 + [True]
    assert not allowed[[0, 2]].any()


def test_a_code_stays_within_the_distance_and_one_shift_beyond_it_changes_it() -> None:
    quantizer = random_vqvae(TINY).quantize
    latent = random_latent(TINY)
    distance = boundary_distance(quantizer, quantizer.last, latent)
    vectors, codebook = quantizer.shrink(quantizer.last, latent), quantizer.embedding.weight
    codes = torch.cdist(vectors, codebook).argmin(dim=-1)
    # Towards every other code in turn.
    towards = codebook - codebook[codes][:, :, None]
    towards = towards / towards.norm(dim=-1, keepdim=True).clamp_min(1e-9)
    for factor, changes in ((0.99, False), (1.01, True)):
        moved = vectors[:, :, None] + factor * distance[..., None, None] * towards
        found = torch.cdist(moved, codebook).argmin(dim=-1)
        changed = (found != codes[..., None]).any(dim=-1)
        assert bool(changed.all()) is changes and bool(changed.any()) is changes
