"""Compute PyTorch's results of a Cosmos tokenizer, and where other codes are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...export.parity import Flags, vector_error
from .model import FSQ, CosmosTokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CosmosReferences:
    """Hold PyTorch's results of N images; CI has neither `indices` nor `distances`.

    `distances` [N, d, h, w] say how far each bounded latent lies from where it rounds the other
    way.
    """

    images: Floats
    latent: Floats
    indices: NDArray[np.int64] | None
    decoded: Floats
    distances: Floats | None

    def may_differ(self, tokens: NDArray[np.int32], error: float) -> Flags:
        if self.distances is None:
            return np.zeros(tokens.shape, np.bool_)
        near: Flags = self.distances.min(axis=1) < vector_error(self.latent, error, channels=1)
        return near


@torch.inference_mode()
def compute_cosmos_references(model: CosmosTokenizer, images: Sequence[Floats]) -> CosmosReferences:
    """Compute references of images [1, 3, H, W] in [-1, 1], all of one size."""
    stacked = np.concatenate(images)
    latent = model.encode(torch.from_numpy(stacked))
    quantizer = model.quantizer
    if quantizer is None:
        decoded = model.decode(latent).numpy()
        return CosmosReferences(stacked, latent.numpy(), None, decoded, None)
    indices = quantizer.indices(latent)
    return CosmosReferences(
        images=stacked,
        latent=latent.numpy(),
        indices=indices.long().numpy(),
        decoded=model.decode(quantizer.codes(indices)).numpy(),
        distances=tie_distance(quantizer, latent).numpy(),
    )


def tie_distance(quantizer: FSQ, latent: Tensor) -> Tensor:
    """Return the distance [N, d, h, w] of bounded latents to the nearest rounding tie."""
    bounded = quantizer.bound(latent.double())
    return ((bounded - bounded.floor()) - 0.5).abs().float()
