"""Compute PyTorch's results of a KL autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...export.parity import Flags
from .model import KlVae

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AutoencoderReferences:
    """Hold PyTorch's results of N images; latents are times the scale of the graphs."""

    images: Floats
    latent: Floats
    decoded: Floats

    @property
    def indices(self) -> None:
        """Return None: latents are continuous."""
        return None

    def may_differ(self, tokens: NDArray[np.int32], error: float) -> Flags:
        """Return False everywhere: there are no tokens."""
        return np.zeros(tokens.shape, np.bool_)


@torch.inference_mode()
def compute_autoencoder_references(
    model: KlVae, images: Sequence[Floats], scale: float = 1.0
) -> AutoencoderReferences:
    """Compute references of images [1, 3, H, W] in [-1, 1], of one size."""
    stacked = np.concatenate(images)
    latent = model.encode(torch.from_numpy(stacked))
    return AutoencoderReferences(
        images=stacked,
        latent=(latent * scale).numpy(),
        decoded=model.decode(latent).numpy(),
    )
