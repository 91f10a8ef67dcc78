"""Tiny VQVAEs of VAR's layout with weights in which every part of the arithmetic shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from arvg_trt.export.weight_file import WeightFile
from arvg_trt.families.var_vqvae.config import VarVqvaeConfig
from arvg_trt.families.var_vqvae.model import VarVqvae
from arvg_trt.families.var_vqvae.quantizer import MultiScaleQuantizer
from arvg_trt.families.var_vqvae.write import export_var_tokenizer
from arvg_trt.graph.sites import Site

from ...export.checkpoint.hub import WIDTH
from ...shared import AFTER_EXPORT, made_once

TINY = VarVqvaeConfig(
    channels=32,
    channels_mult=(1, 2),
    num_res_blocks=1,
    latent_channels=8,
    vocab_size=40,
    patch_nums=(1, 2, 3, 5, 6),
)


# Ten scales, so that the published table of convolutions holds; no side divides the last.
TEN = VarVqvaeConfig(
    channels=32,
    channels_mult=(1,),
    num_res_blocks=1,
    latent_channels=4,
    vocab_size=24,
    patch_nums=(1, 2, 3, 4, 5, 6, 7, 8, 9, 11),
)


@dataclass(frozen=True)
class TinyTokenizer:
    """A random model, the linear of a transformer, their graphs and sites."""

    model: VarVqvae
    word_embed: nn.Linear
    folder: Path
    sites: tuple[Site, ...]


def random_vqvae(config: VarVqvaeConfig, seed: int = 0) -> VarVqvae:
    """Norms that are not the identity, and latents on the scale of the codes."""
    torch.manual_seed(seed)
    model = VarVqvae(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if ".norm" in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.quantize.embedding.weight.mul_(0.5)
    model.quant_conv.weight.mul_(4)
    return model


def random_quantizer(config: VarVqvaeConfig, seed: int = 0) -> MultiScaleQuantizer:
    return random_vqvae(config, seed).quantize


def random_latent(config: VarVqvaeConfig, count: int = 2, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, config.latent_channels, config.latent_size, config.latent_size)
    return torch.randn(shape, generator=generator)


def random_images(config: VarVqvaeConfig, count: int = 2, seed: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = config.image_size
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TinyTokenizer:
    """All graphs of a random tokenizer's; what is done with them must leave them as they are."""
    model = random_vqvae(TINY)
    torch.manual_seed(0)
    word_embed = nn.Linear(TINY.latent_channels, WIDTH).requires_grad_(False)

    def make(folder: Path) -> tuple[Site, ...]:
        with WeightFile(folder) as weights:
            return export_var_tokenizer(model, weights, {"arvg_trt.model": "tiny"}, word_embed)

    folder, sites = made_once(tmp_path_factory, "var_tokenizer", make, unused=AFTER_EXPORT)
    return TinyTokenizer(model, word_embed, folder, sites)
