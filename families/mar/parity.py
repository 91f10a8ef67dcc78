"""Compare the graphs of a MAR and its autoencoder in ONNX Runtime with PyTorch.

PyTorch computes first, and is released before the graphs are loaded.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.facts import Difference
from ...export.parity import Arrays, difference, require
from ...runtime.sessions.open import fast_session, mapped_session
from ...runtime.spec import TIMES
from ..kl_vae.parity import AutoencoderReferences
from .diffusion import Diffusion
from .model import MarTransformer

Floats = NDArray[np.float32]
# Times of the denoiser that are compared, with different rows of its table.
AT = (0, 61, 496, TIMES - 1)


@dataclass(frozen=True, slots=True)
class References:
    """Hold feeds and outputs: of passes by known tokens, of the denoiser by time."""

    passes: dict[int, tuple[Arrays, Arrays]]
    denoised: dict[int, tuple[Arrays, Arrays]]


def check_autoencoder_parity(folder: Path, wanted: AutoencoderReferences) -> tuple[Difference, ...]:
    """Run encoder and decoder, each on PyTorch's inputs.

    Raises:
        ExportError: a difference above the tolerance; names the graph.
    """
    encoded = fast_session(folder / "encoder.onnx").run({"image": wanted.images})["latent"]
    latent = difference("encoder", "latent", encoded, wanted.latent)
    gc.collect()
    decoded = fast_session(folder / "decoder.onnx").run({"latent": wanted.latent})["image"]
    found = latent, difference("decoder", "image", decoded, wanted.decoded)
    for one in found:
        require(one)
    return found


@torch.inference_mode()
def compute_mar_references(model: MarTransformer, labels: Tensor, tokens: Tensor) -> References:
    """Compute references of labels int64 [rows] and tokens [rows, L, c].

    Tokens are those of real images, in raster order. The denoiser sees them with each time's noise.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    rows, net = len(labels), model.diffloss.net
    order = torch.rand(rows, config.length, generator=generator).argsort(dim=1)
    ordered = tokens.gather(1, order.unsqueeze(2).expand_as(tokens))
    passes, denoised, alpha_bar = {}, {}, Diffusion.of(TIMES).alpha_bar
    for known in known_counts(config.length):
        tokens = ordered[:, :known].contiguous()
        z = model(labels, tokens, order)
        condition = net.cond_embed(z)
        passes[known] = (
            {"labels": labels.numpy(), "tokens": tokens.numpy(), "position_ids": order.numpy()},
            {"z": z.numpy(), "condition": condition.numpy()},
        )
    z, condition, clean = z[:, -1], condition[:, -1], ordered[:, -1]
    for time in AT:
        noise = torch.randn(clean.shape, generator=generator)
        x = alpha_bar[time] ** 0.5 * clean + (1 - alpha_bar[time]) ** 0.5 * noise
        predicted, spread = net(x, torch.full((rows,), time), z).chunk(2, dim=1)
        denoised[time] = (
            {"x": x.numpy(), "time": np.array([time]), "condition": condition.numpy()},
            {"noise": predicted.numpy(), "spread": spread.numpy()},
        )
    return References(passes, denoised)


def check_mar_parity(folder: Path, wanted: References) -> tuple[Difference, ...]:
    """Run pass.onnx with none, some and all but one token known, and denoise.onnx.

    Raises:
        ExportError: a difference above the tolerance; names the graph, and how many were known.
    """
    differences: list[Difference] = []
    session = mapped_session(folder / "pass.onnx")
    for known, (feeds, outputs) in wanted.passes.items():
        values = session.run(feeds)
        for name, array in outputs.items():
            one = difference("pass", name, values[name], array, array.shape[1], known)
            differences.append(one)
    del session
    gc.collect()
    session = mapped_session(folder / "denoise.onnx")
    for time, (feeds, outputs) in wanted.denoised.items():
        values = session.run(feeds)
        for name, array in outputs.items():
            differences.append(difference("denoise", f"{name} at {time}", values[name], array))
    for one in differences:
        require(one)
    return tuple(differences)


def known_counts(length: int) -> tuple[int, ...]:
    """Return numbers of known tokens to try, ascending: none, one, half, all but one."""
    return tuple(sorted({0, min(1, length - 1), length // 2, length - 1}))
