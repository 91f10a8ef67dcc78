"""Compare the graphs of a tokenizer with PyTorch: one map of codes, or latents.

PyTorch computes first and is let go; then one graph at a time is loaded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...export.facts import Difference, TokenParity
from ...export.parity import (
    Flags,
    code_distance,
    difference,
    near_boundary,
    require,
    require_tokens,
)
from ...runtime.sessions.open import fast_session
from ...runtime.sessions.session import Session
from .vq import VqTokenizer

Floats = NDArray[np.float32]


class References(Protocol):
    """Hold what PyTorch computes for N images, and which tokens may differ.

    A continuous tokenizer has no `indices`: what it decodes is the latent.
    """

    @property
    def images(self) -> Floats: ...

    @property
    def latent(self) -> Floats: ...

    @property
    def indices(self) -> NDArray[np.int64] | None: ...

    @property
    def decoded(self) -> Floats: ...

    def may_differ(self, tokens: NDArray[np.int32], error: float) -> Flags:
        """Return where the tokens `tokens` may differ from `indices`.

        `error` is the largest of the latent, relative to its RMS.
        """
        ...


@dataclass(frozen=True, slots=True)
class VqReferences:
    """Hold `References` of a tokenizer whose codes are compared with the latent itself.

    `distances` [N, h, w] say how far each latent vector lies from another code's region.
    """

    images: Floats
    latent: Floats
    indices: NDArray[np.int64]
    decoded: Floats
    distances: Floats

    def may_differ(self, tokens: NDArray[np.int32], error: float) -> Flags:
        return near_boundary(self.distances, self.latent, error)


@torch.inference_mode()
def compute_vq_references(model: VqTokenizer, images: Sequence[Floats]) -> VqReferences:
    """Compute references of images [1, 3, H, W] in [-1, 1], all of one size."""
    stacked = np.concatenate(images)
    latent = model.encode(torch.from_numpy(stacked))
    codes = model.codes(latent)
    distances = code_distance(latent.permute(0, 2, 3, 1), model.codebook)
    return VqReferences(
        images=stacked,
        latent=latent.numpy(),
        indices=codes.numpy(),
        distances=distances.numpy(),
        decoded=model.decode(codes).numpy(),
    )


def check_vq_parity(
    folder: Path,
    wanted: References,
    session: Callable[[Path], Session] = fast_session,
) -> tuple[TokenParity, tuple[Difference, ...]]:
    """Run encoder and decoder in a `session` each, on PyTorch's inputs.

    Raises:
        ExportError: a difference above the tolerance, or a token that differs and may not.
    """
    encoded = session(folder / "encoder.onnx").run({"image": wanted.images})
    latent = difference("encoder", "latent", encoded["latent"], wanted.latent)
    gc.collect()
    indices = None if wanted.indices is None else wanted.indices.astype(np.int32)
    decoder = session(folder / "decoder.onnx")
    decoded = decoder.run({decoder.inputs[0]: wanted.latent if indices is None else indices})
    image = difference("decoder", "image", decoded["image"], wanted.decoded)
    require(latent)
    require(image)
    if indices is None:
        return TokenParity(0, 0, 0), (latent, image)
    unequal = encoded["indices"] != indices
    excused = unequal & wanted.may_differ(encoded["indices"].astype(np.int32), latent.max)
    tokens = TokenParity(unequal.size, int(unequal.sum()), int(excused.sum()))
    require_tokens(tokens)
    return tokens, (latent, image)
