"""Tiny RARs and MaskGIT-VQs with weights in which every part of the arithmetic shows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from arvg_trt.families.maskgit_vq.config import MaskgitVqConfig
from arvg_trt.families.maskgit_vq.model import MaskgitVq
from arvg_trt.families.rar.config import RarConfig
from arvg_trt.families.rar.model import RarTransformer

from ..shared.models import TinyExported

SMALL = RarConfig(depth=2, width=32, heads=4, hidden=48, length=16, num_classes=5, vocab_size=48)
TOKENIZER = MaskgitVqConfig(
    channels=32, channels_mult=(1, 2), num_res_blocks=1, latent_channels=8, vocab_size=48
)
FILES = ("rar_b.bin", "maskgit-vqgan-imagenet-f16-256.bin")
TinyRar = TinyExported[RarTransformer, MaskgitVq]


def random_rar(config: RarConfig = SMALL, seed: int = 0) -> RarTransformer:
    """All parameters redrawn: published training begins with zero modulation and no cls token."""
    generator = torch.Generator().manual_seed(seed)
    model = RarTransformer(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.3 * noise)
        elif parameter.ndim == 2 and "embeddings" not in name:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(0.5 * noise)
    return model


def random_maskgit(config: MaskgitVqConfig = TOKENIZER, seed: int = 0) -> MaskgitVq:
    """Norms that are not the identity, and codes on the scale of the latents."""
    torch.manual_seed(seed)
    model = MaskgitVq(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.encoder.conv_out.weight.mul_(4)
    model.quantize.embedding.weight.mul_(0.7)
    return model


def write_checkpoint(
    folder: Path,
    transformer: dict[str, Tensor] | None,
    tokenizer: dict[str, Tensor] | None,
    files: tuple[str, str] = FILES,
) -> Path:
    """Write a checkpoint as published: two bare state dicts; None leaves a file out."""
    folder.mkdir()
    for name, tensors in zip(files, (transformer, tokenizer), strict=True):
        if tensors is not None:
            torch.save(tensors, folder / name)
    return folder
