"""Tiny PARs and LlamaGen VQs with weights in which every part of the arithmetic shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from arvg_trt.families.llamagen_vq.config import LlamagenVqConfig
from arvg_trt.families.llamagen_vq.model import LlamagenVq
from arvg_trt.families.par.config import ParConfig
from arvg_trt.families.par.model import ParTransformer

from ..shared.models import TinyExported

SMALL = ParConfig(
    depth=2, width=32, heads=2, hidden=48, length=16, group=4, num_classes=5, vocab_size=48
)
# With 16 regions: groups of distant tokens, of which the first 16 are single.
WIDE = ParConfig(
    depth=2, width=24, heads=3, hidden=40, length=64, group=16, num_classes=5, vocab_size=48
)
TOKENIZER = LlamagenVqConfig(
    channels=32,
    channels_mult=(1, 2),
    num_res_blocks=1,
    z_channels=16,
    latent_channels=4,
    vocab_size=48,
)
FILES = ("PAR-XL-4x.pt", "vq_ds16_c2i.pt")
Model = TypeVar("Model", bound=nn.Module)
JSON = {"n_head": SMALL.heads, "block_size": SMALL.length}
TinyPar = TinyExported[ParTransformer, LlamagenVq]


def random_par(config: ParConfig = SMALL, seed: int = 0) -> ParTransformer:
    return redrawn(ParTransformer(config), seed)


def redrawn(model: Model, seed: int) -> Model:
    """All parameters redrawn: published training begins with a head of zeros."""
    generator = torch.Generator().manual_seed(seed)
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(1 + 0.3 * noise)
        elif "embedding" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model


def random_llamagen(config: LlamagenVqConfig = TOKENIZER, seed: int = 0) -> LlamagenVq:
    """Norms that are not the identity, and codes of many lengths."""
    torch.manual_seed(seed)
    model = LlamagenVq(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
    lengths = torch.rand(config.vocab_size, 1) * 3 + 0.1
    model.quantize.embedding.weight.mul_(lengths)
    return model


def official_tokenizer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the buffer that the official file has."""
    return tensors | {"quantize.codebook_used": torch.zeros(65536)}


def write_checkpoint(
    folder: Path,
    transformer: dict[str, Tensor] | None,
    tokenizer: dict[str, Tensor] | None,
    files: tuple[str, str] = FILES,
) -> Path:
    """Write a checkpoint as published: two state dicts, each under "model".

    None leaves a file out.
    """
    folder.mkdir()
    for name, tensors in zip(files, (transformer, tokenizer), strict=True):
        if tensors is not None:
            torch.save({"model": tensors}, folder / name)
    (folder / "config.json").write_text(json.dumps(JSON))
    return folder
