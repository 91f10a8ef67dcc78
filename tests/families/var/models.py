"""Tiny VAR transformers with weights in which every part of the arithmetic shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvg_trt.export.shape import DYNAMIC, ExportShape
from arvg_trt.families.var.config import VarConfig
from arvg_trt.families.var.model import VarTransformer
from arvg_trt.families.var.write import export_var
from arvg_trt.families.var_vqvae.config import VarVqvaeConfig
from arvg_trt.graph.sites import Site

from ..rar import models as rar_models
from ..shared.models import exported_once

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
# Of three scales, with the tokenizer of their codes.
THREE = replace(SMALL, patch_nums=(1, 2, 3))
TOKENIZER = VarVqvaeConfig(
    channels=32,
    channels_mult=(1, 1),
    num_res_blocks=1,
    latent_channels=THREE.latent_channels,
    vocab_size=THREE.vocab_size,
    patch_nums=THREE.patch_nums,
)
EXPORTED = replace(THREE, depth=1)
FILES = ("var_d16.pth", "vae_ch160v4096z32.pth")


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


@dataclass(frozen=True)
class ExportedVar:
    """A random VAR, its graphs and their sites."""

    model: VarTransformer
    folder: Path
    sites: tuple[Site, ...]


def exported_var(
    factory: pytest.TempPathFactory, config: VarConfig, form: ExportShape = DYNAMIC
) -> ExportedVar:
    """Export a random VAR once a machine."""
    model = random_var(config)
    folder, sites = exported_once(
        factory, "var", config, lambda weights, form: export_var(model, weights, {}, form), form
    )
    return ExportedVar(model, folder, sites)


def write_checkpoint(
    folder: Path, transformer: dict[str, Tensor] | None, tokenizer: dict[str, Tensor] | None
) -> Path:
    """Write a checkpoint as published: two bare state dicts; None leaves a file out."""
    return rar_models.write_checkpoint(folder, transformer, tokenizer, FILES)


def features_of(config: VarConfig, rows: int, seed: int = 1) -> Tensor:
    shape = (rows, config.length - config.first_length, config.latent_channels)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
