"""Images from exported graphs against the published loop in float64 PyTorch, without a cache."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from arvg_trt.export.shape import ExportShape
from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.var.export import generator_spec
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var_vqvae.model import VarVqvae
from arvg_trt.families.var_vqvae.write import decoder_graph, update_graph
from arvg_trt.graph.sites import Site
from arvg_trt.runtime.generator import Generator
from arvg_trt.workspace.files import encode_json

from ...runtime.test_generator import Drawn, greedy, pictures
from ..shared.models import exported_once
from ..var_vqvae.models import random_vqvae
from .models import THREE as CONFIG
from .models import TOKENIZER as VAE
from .models import exported_var

SIDES = CONFIG.patch_nums
LABELS = [4, 0, 2]
Choose = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Models:
    transformer: VarTransformer
    vae: VarVqvae
    generator: Generator


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Only the tokenizer's graphs that a generator opens: the others take time to export."""
    exported, vae = exported_var(tmp_path_factory, CONFIG), random_vqvae(VAE)

    def export(weights: WeightFile, form: ExportShape) -> tuple[Site, ...]:
        weights.save(decoder_graph(vae), "decoder", {})
        for k in range(len(SIDES)):
            graph = update_graph(vae, k, exported.model.word_embed)
            weights.save(graph, f"update.{k}", {})
        return ()

    folder, _ = exported_once(tmp_path_factory, "var-decoder", (CONFIG, VAE), export)
    for name in ("condition", "step"):
        onnx.save(onnx.load(exported.folder / f"{name}.onnx"), folder / f"{name}.onnx")
    (folder / "generator.json").write_bytes(encode_json(generator_spec(CONFIG, vae)))
    return Models(exported.model, vae, Generator.open(folder, threads=1, verify=False))


def generate_uncached(models: Models, choose: Choose, cfg: float) -> tuple[np.ndarray, np.ndarray]:
    """Images [B, 3, H, W] and tokens [B, L] of `LABELS`; every scale runs all before it again."""
    transformer, vae = (copy.deepcopy(m).double() for m in (models.transformer, models.vae))
    count, null = len(LABELS), CONFIG.num_classes
    rows = torch.tensor([*LABELS, *[null] * count])
    start, modulation, head_modulation = transformer.condition(rows)
    f_hat = torch.zeros(count, VAE.latent_channels, SIDES[-1], SIDES[-1], dtype=torch.float64)
    seen, tokens = start, []
    for scale, side in enumerate(SIDES):
        n = seen.shape[1]
        logits, _ = transformer.step(
            seen,
            transformer.positions()[:n],
            modulation,
            head_modulation,
            mask=transformer.attn_bias_for_masking[:, :, :n, :n],
        )
        new = logits[:, n - side * side :]
        t = cfg * scale / (len(SIDES) - 1)
        chosen = choose(scale, ((1 + t) * new[:count] - t * new[count:]).numpy())
        tokens.append(chosen)
        f_hat = f_hat + contribution(vae, scale, torch.from_numpy(chosen))
        if scale + 1 < len(SIDES):
            following = (SIDES[scale + 1],) * 2
            small = F.interpolate(f_hat, following, mode="area").flatten(2).transpose(1, 2)
            seen = torch.cat((seen, transformer.word_embed(small).repeat(2, 1, 1)), dim=1)
    return vae.decode(f_hat).numpy(), np.concatenate(tokens, axis=1)


def contribution(vae: VarVqvae, scale: int, tokens: Tensor) -> Tensor:
    """0.5 h + 0.5 conv(h), h the codes enlarged to the whole latent."""
    side = SIDES[scale]
    h = vae.quantize.embedding.weight[tokens].transpose(1, 2).reshape(len(tokens), -1, side, side)
    if side < SIDES[-1]:
        h = F.interpolate(h, (SIDES[-1],) * 2, mode="bicubic")
    conv = vae.quantize.quant_resi.qresi_ls[VAE.phi_of_scale[scale]]
    return 0.5 * h + 0.5 * F.conv2d(h, conv.weight, conv.bias, padding=1)


@pytest.mark.parametrize("cfg", [0.0, 1.5, 4.0])
def test_greedy_tokens_and_images_are_those_of_the_published_loop(
    models: Models, cfg: float
) -> None:
    images, tokens = generate_uncached(models, greedy, cfg)
    found = models.generator.generate(LABELS, cfg=cfg, greedy=True)
    assert np.array_equal(found.tokens, tokens)
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1
    assert len(np.unique(tokens)) > 5  # the models do not always say the same


@pytest.mark.parametrize("seed", range(4))
def test_drawn_tokens_are_those_of_the_published_loop(models: Models, seed: int) -> None:
    choose = Drawn(seed, len(LABELS), 20, 0.9)
    images, tokens = generate_uncached(models, choose, 1.5)
    found = models.generator.generate(LABELS, seed=seed, top_k=20, top_p=0.9)
    assert np.array_equal(found.tokens, tokens)
    assert np.abs(found.images.astype(int) - pictures(images)).max() <= 1


def test_batches_of_other_sizes_give_the_same_tokens(models: Models) -> None:
    labels = [0, 1, 2, 3, 4]
    whole = models.generator.generate(labels, batch_size=5)
    assert np.array_equal(models.generator.generate(labels, batch_size=2).tokens, whole.tokens)
