"""Compute PyTorch's results of a GSQ tokenizer, and where other codes are allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...export.parity import LEAST_ERROR, Flags, vector_error
from .model import GsqTokenizer

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GsqReferences:
    """Hold PyTorch's results of N images; tokens are [N, h, w], or [N, h, w, G].

    `raw` and `vectors` [N, h, w, G, d] are the latent's groups as they are and as they are compared
    with `table` [V, d]. Codes of a large codebook lie closer together than float32 can tell, so a
    token is judged by how much worse its code is than PyTorch's.
    """

    images: Floats
    latent: Floats
    indices: NDArray[np.int64]
    decoded: Floats
    raw: Floats
    vectors: Floats
    table: Floats

    def may_differ(self, tokens: NDArray[np.int32], error: float) -> Flags:
        """Return where both codes are equally near, up to float error."""
        allowed = np.zeros(tokens.shape, np.bool_)
        at = tokens != self.indices
        flat = at.reshape(self.vectors.shape[:-1])
        vectors, raw = (each[flat].astype(np.float64) for each in (self.vectors, self.raw))
        wanted, other = (self.table[i[at]].astype(np.float64) for i in (self.indices, tokens))
        worse = closeness(vectors, wanted) - closeness(vectors, other)
        # A vector that was divided by its length is as much more sensitive.
        lengths = np.linalg.norm(vectors, axis=-1)
        scale = lengths / np.maximum(np.linalg.norm(raw, axis=-1), np.finfo(np.float32).tiny)
        moved = vector_error(self.latent, error, self.table.shape[1]) * scale
        reach = moved * np.linalg.norm(wanted - other, axis=-1)
        rounding = LEAST_ERROR * lengths * np.linalg.norm(wanted, axis=-1)
        allowed[at] = worse <= reach + rounding
        return allowed


def closeness(vectors: NDArray[np.float64], codes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a score that is largest for the nearest code: two [..., d] -> [...]."""
    scores: NDArray[np.float64] = (vectors * codes).sum(-1) - 0.5 * np.square(codes).sum(-1)
    return scores


@torch.inference_mode()
def compute_gsq_references(model: GsqTokenizer, images: Sequence[Floats]) -> GsqReferences:
    """Compute references of images [1, 3, H, W] in [-1, 1], all of one size."""
    quantizer = model.quantizers
    stacked = np.concatenate(images)
    latent = model.encode(torch.from_numpy(stacked))
    codes = model.codes(latent)
    raw = torch.unflatten(latent.permute(0, 2, 3, 1), -1, (quantizer.groups, -1))
    return GsqReferences(
        images=stacked,
        latent=latent.numpy(),
        indices=codes.numpy(),
        decoded=model.decode(codes).numpy(),
        raw=raw.numpy(),
        vectors=quantizer.vectors(latent).numpy(),
        table=quantizer.table().numpy(),
    )
