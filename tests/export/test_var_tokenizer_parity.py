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
from torch import nn

from arvg_trt.errors import ExportError
from arvg_trt.export.vqvae_export import export_updates, export_vqvae
from arvg_trt.export.vqvae_parity import (
    VqvaeParity,
    VqvaeReferences,
    boundary_distance,
    check_vqvae_parity,
    compute_vqvae_references,
    may_differ,
    require_tokens,
)
from arvg_trt.export.weight_file import WeightFile

from .vqvae_models import TINY, random_images, random_latent, random_vqvae

SHORT = replace(TINY, patch_nums=(1, 3, 4))
START = (0, 1, 10, 26)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VqvaeReferences]:
    model = random_vqvae(SHORT)
    word_embed = nn.Linear(SHORT.latent_channels, 16).requires_grad_(False)
    folder = tmp_path_factory.mktemp("parity")
    with WeightFile(folder) as weights:
        export_vqvae(model, weights, {})
        export_updates(model, word_embed, weights, {})
    images = [image.numpy() for image in random_images(SHORT, 3).split(1)]
    return folder, compute_vqvae_references(model, word_embed, images)


def test_every_graph_is_compared_and_agrees(exported: tuple[Path, VqvaeReferences]) -> None:
    parity = check_vqvae_parity(*exported)
    compared = [(d.graph, d.tensor) for d in parity.differences]
    assert compared == [
        ("encoder", "latent"),
        ("lookup", "latent"),
        ("lookup", "features"),
        ("update.0", "f_hat_next"),
        ("update.0", "x"),
        ("update.1", "f_hat_next"),
        ("update.1", "x"),
        ("update.2", "f_hat_next"),
        ("decoder", "image"),
    ]
    assert all(d.mean <= d.max < 1e-4 for d in parity.differences)
    assert (parity.tokens, parity.indices_differ) == (3 * 26, 0)


def test_references_are_the_models(exported: tuple[Path, VqvaeReferences]) -> None:
    model, wanted = random_vqvae(SHORT), exported[1]
    codes = model.quantize.encode(model.encode(torch.from_numpy(wanted.image)))
    assert np.array_equal(codes.numpy(), wanted.codes)
    total, features = model.quantize.decode_with_features(codes)
    torch.testing.assert_close(total, torch.from_numpy(wanted.sums[-1]))
    torch.testing.assert_close(features, wanted.features)


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
        ("update.2", "f_hat_next", "quantize.quant_resi.qresi_ls.3.bias"),
        ("decoder", "image", "decoder.conv_out.bias"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    exported: tuple[Path, VqvaeReferences],
    tmp_path: Path,
    graph: str,
    tensor: str,
    initializer: str,
) -> None:
    changed_copy(exported[0], tmp_path, graph, initializer, 0.01)
    with pytest.raises(ExportError, match=rf"{graph}.onnx: {tensor} of ONNX Runtime differs"):
        check_vqvae_parity(tmp_path, exported[1])


def test_tokens_that_differ_without_a_reason_are_refused(
    exported: tuple[Path, VqvaeReferences], tmp_path: Path
) -> None:
    changed_copy(exported[0], tmp_path, "encoder", "quantize.nearest.bias", 0.3)
    with pytest.raises(ExportError, match=r"encoder.onnx: \d+ of 78 tokens differ"):
        check_vqvae_parity(tmp_path, exported[1])


def test_tokens_at_a_boundary_are_counted_and_let_pass() -> None:
    require_tokens(VqvaeParity((), 78, 2, 2))
    with pytest.raises(ExportError, match="1 of 78 tokens differ"):
        require_tokens(VqvaeParity((), 78, 2, 1))


def test_a_token_at_a_boundary_excuses_the_later_scales_of_its_image(
    exported: tuple[Path, VqvaeReferences],
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
    assert allowed[1, START[2] :].all()
    assert not allowed[1, : START[2]].sum() > 1
    assert not allowed[[0, 2]].any()


def test_the_distance_to_a_boundary_is_the_shift_that_changes_a_code() -> None:
    quantizer = random_vqvae(SHORT).quantize
    latent = random_latent(SHORT)
    last = quantizer.last
    distance = boundary_distance(quantizer, last, latent)
    codebook = quantizer.embedding.weight
    vectors = quantizer.shrink(last, latent)
    nearest = torch.cdist(vectors, codebook).topk(2, largest=False).indices
    towards = codebook[nearest[..., 1]] - codebook[nearest[..., 0]]
    towards = towards / towards.norm(dim=-1, keepdim=True)
    for factor, changed in ((0.99, False), (1.01, True)):
        moved = vectors + factor * distance[..., None] * towards
        codes = torch.cdist(moved, codebook).argmin(dim=-1)
        assert bool((codes != nearest[..., 0]).all()) is changed
        assert bool((codes == nearest[..., 0]).all()) is not changed
