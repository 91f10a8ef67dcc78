"""Tiny VAR transformers with weights in which every part of the arithmetic shows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from arvg_trt.families.var.config import VarConfig
from arvg_trt.families.var.model import VarTransformer

SMALL = VarConfig(
    depth=2,
    width=32,
    heads=4,
    patch_nums=(1, 2, 3, 4),
    num_classes=5,
    vocab_size=48,
    latent_channels=8,
)
SHARED = replace(SMALL, shared_aln=True)
PLAIN = replace(SMALL, attn_l2_norm=False)
FORMS = (SMALL, SHARED, PLAIN)


def random_var(config: VarConfig, seed: int = 0) -> VarTransformer:
    """All parameters redrawn: gates near 1e-5, as published training begins, hide the blocks."""
    generator = torch.Generator().manual_seed(seed)
    model = VarTransformer(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("scale_mul_1H11"):
            parameter.copy_(1.4 + 0.4 * noise)
        elif parameter.ndim == 2 and "emb" not in name:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(0.5 * noise)
    return model


def features_of(config: VarConfig, rows: int, seed: int = 1) -> Tensor:
    shape = (rows, config.length - config.first_length, config.latent_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
