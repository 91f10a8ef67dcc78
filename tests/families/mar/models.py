"""Tiny MARs and KL autoencoders with weights in which every part of the arithmetic shows."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from arvg_trt.families.kl_vae.config import KlVaeConfig
from arvg_trt.families.kl_vae.model import KlVae
from arvg_trt.families.mar.config import MarConfig
from arvg_trt.families.mar.model import MarTransformer

from ..shared.models import TinyExported

SMALL = MarConfig(
    encoder_depth=2,
    decoder_depth=3,
    width=32,
    heads=4,
    head_depth=2,
    head_width=24,
    hidden=48,
    length=16,
    buffer=3,
    latent_channels=4,
    num_classes=5,
    frequencies=16,
    latent_scale=0.5,
)
CONFIG_JSON = {"num_heads": 4, "latent_scale": 0.5}
AUTOENCODER = KlVaeConfig(channels=32, channels_mult=(1, 2), num_res_blocks=1, latent_channels=4)
FILES = ("checkpoint-last.pth", "kl16.ckpt")
TinyMar = TinyExported[MarTransformer, KlVae]


class Payload:
    """Makes a folder when a pickle of it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def random_mar(config: MarConfig = SMALL, seed: int = 0) -> MarTransformer:
    """All parameters redrawn: published training begins with closed gates and a zero last layer.

    The last layer is small, as a trained one's errors are: the first step of the way back
    multiplies them by 2e4.
    """
    generator = torch.Generator().manual_seed(seed)
    model = MarTransformer(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):  # of a norm
            parameter.copy_(1 + 0.3 * noise)
        elif parameter.ndim == 2 and name.endswith("weight") and "class_emb" not in name:
            parameter.copy_(noise / parameter.shape[1] ** 0.5)
        else:
            parameter.copy_(0.5 * noise)
    for parameter in model.diffloss.net.final_layer.linear.parameters():
        parameter.mul_(0.1)
    return model


def random_kl_vae(config: KlVaeConfig = AUTOENCODER, seed: int = 0) -> KlVae:
    """Norms that are not the identity."""
    torch.manual_seed(seed)
    model = KlVae(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_known(config: MarConfig, rows: int, known: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Tokens [rows, known, c] and a permutation of the raster a row, [rows, L]."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(rows, config.length, generator=generator).argsort(dim=1)
    return torch.randn(rows, known, config.latent_channels, generator=generator), orders


def write_checkpoint(
    folder: Path,
    transformer: dict[str, Tensor] | None,
    autoencoder: dict[str, Tensor] | None,
    config_json: dict[str, object] | None = None,
) -> Path:
    """Write a checkpoint as published, wrappers and all; None leaves a file out.

    The last weights are no use.
    """
    folder.mkdir()
    if transformer is not None:
        last = {k: torch.full_like(v, 7.0) for k, v in transformer.items()}
        trained = {
            "model": last,
            "model_ema": transformer,
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1.0}]},
            "epoch": 799,
            "scaler": {"scale": 65536.0},
            "args": Namespace(model="mar_tiny", lr=None, resume="", num_iter=64),
        }
        torch.save(trained, folder / FILES[0])
    if autoencoder is not None:
        torch.save({"model": autoencoder}, folder / FILES[1])
    if config_json is not None:
        (folder / "config.json").write_text(json.dumps(config_json))
    return folder
