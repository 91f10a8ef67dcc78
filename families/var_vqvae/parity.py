"""Compare the graphs of VAR's tokenizer in ONNX Runtime with PyTorch, on real images.

PyTorch computes first and is released; then one graph at a time is loaded.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...export.facts import Difference, TokenParity
from ...export.parity import (
    Array,
    Arrays,
    Flags,
    code_distance,
    difference,
    near_boundary,
    require,
    require_tokens,
)
from ...export.shape import DYNAMIC, ExportShape
from ...runtime.sessions.open import mapped_session
from ...runtime.sessions.session import Session
from .model import VarVqvae
from .quantizer import MultiScaleQuantizer

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenizerReferences:
    """Hold what PyTorch computes for N images.

    `distances` [N, L]: how far the vector that each token stands for lies from another code's
    region. `sums` are f_hat behind every scale; `inputs` the transformer's of
    all scales but the first, [N, L - first, width].
    """

    lengths: tuple[int, ...]
    images: Floats
    indices: NDArray[np.int64]
    distances: Floats
    latent: Floats
    sums: tuple[Floats, ...]
    features: Floats
    inputs: Floats
    decoded: Floats


@dataclass(frozen=True, slots=True)
class CodeReferences:
    """Hold `TokenizerReferences` of N images for the tokenizer alone."""

    lengths: tuple[int, ...]
    images: Floats
    indices: NDArray[np.int64]
    distances: Floats
    latent: Floats
    decoded: Floats

    def may_differ(self, tokens: NDArray[np.int32], error: float) -> Flags:
        """Return tokens near a boundary, and those behind a scale where such a one differs."""
        return may_differ(self, tokens != self.indices, error)


@torch.inference_mode()
def compute_code_references(model: VarVqvae, images: Sequence[Floats]) -> CodeReferences:
    """Compute references of images [1, 3, H, H] in [-1, 1]."""
    quantizer = model.quantize
    stacked = np.concatenate(images)
    latent = model.encode(torch.from_numpy(stacked))
    indices = quantizer.encode(latent)
    total = torch.zeros_like(latent)
    distances = []
    for scale, codes in enumerate(quantizer.split(indices)):
        distances.append(boundary_distance(quantizer, scale, latent - total))
        total = total + quantizer.contribution(scale, codes)
    return CodeReferences(
        lengths=model.config.lengths,
        images=stacked,
        indices=indices.numpy(),
        distances=torch.cat(distances, dim=1).numpy(),
        latent=latent.numpy(),
        decoded=model.decode(total).numpy(),
    )


@torch.inference_mode()
def compute_tokenizer_references(
    model: VarVqvae, word_embed: nn.Linear, images: Sequence[Floats]
) -> TokenizerReferences:
    """Compute references of images [1, 3, H, H] in [-1, 1].

    `word_embed` is the transformer's.
    """
    quantizer = model.quantize
    stacked = np.concatenate(images)
    latent = model.encode(torch.from_numpy(stacked))
    indices = quantizer.encode(latent)
    total = torch.zeros_like(latent)
    distances, sums = [], []
    for scale, codes in enumerate(quantizer.split(indices)):
        distances.append(boundary_distance(quantizer, scale, latent - total))
        total = total + quantizer.contribution(scale, codes)
        sums.append(total.numpy())
    features = quantizer.features(indices)
    return TokenizerReferences(
        lengths=model.config.lengths,
        images=stacked,
        indices=indices.numpy(),
        distances=torch.cat(distances, dim=1).numpy(),
        latent=latent.numpy(),
        sums=tuple(sums),
        features=features.numpy(),
        inputs=word_embed(features).numpy(),
        decoded=model.decode(total).numpy(),
    )


def boundary_distance(quantizer: MultiScaleQuantizer, scale: int, residual: Tensor) -> Tensor:
    """Return how far each vector may move without changing its code, [N, p*p]."""
    return code_distance(quantizer.shrink(scale, residual), quantizer.embedding.weight)


def check_tokenizer_parity(
    folder: Path, wanted: TokenizerReferences, form: ExportShape = DYNAMIC
) -> tuple[TokenParity, tuple[Difference, ...]]:
    """Run encoder, decoder, lookup and every update, each on PyTorch's inputs.

    Raises:
        ExportError: a difference above the tolerance, or a token that differs and may not.
    """
    encoded = mapped_session(folder / "encoder.onnx").run({"image": wanted.images})
    differences = [difference("encoder", "latent", encoded["latent"], wanted.latent)]
    gc.collect()
    decoder = mapped_session(folder / "decoder.onnx")
    decoded = run_in_rows(decoder, {"latent": wanted.sums[-1]}, form.static_batch)
    del decoder
    differences.append(difference("decoder", "image", decoded["image"], wanted.decoded))
    gc.collect()
    looked = mapped_session(folder / "lookup.onnx").run(
        {"indices": wanted.indices.astype(np.int32)}
    )
    differences.append(difference("lookup", "latent", looked["latent"], wanted.sums[-1]))
    differences.append(difference("lookup", "features", looked["features"], wanted.features))
    differences += check_updates(folder, wanted, form)
    for one in differences:
        require(one)
    unequal = encoded["indices"] != wanted.indices
    excused = unequal & may_differ(wanted, unequal, differences[0].max)
    tokens = TokenParity(unequal.size, int(unequal.sum()), int(excused.sum()))
    require_tokens(tokens)
    return tokens, tuple(differences)


def check_updates(folder: Path, wanted: TokenizerReferences, form: ExportShape) -> list[Difference]:
    """Compare each update on its tokens and the f_hat before it."""
    differences = []
    before = np.zeros_like(wanted.latent)
    for scale, (a, b) in enumerate(pairwise(np.cumsum([0, *wanted.lengths]))):
        name = f"update.{scale}"
        feeds: Arrays = {"tokens": wanted.indices[:, a:b], "f_hat": before}
        outputs = run_in_rows(mapped_session(folder / f"{name}.onnx"), feeds, form.rows)
        before = wanted.sums[scale]
        differences.append(difference(name, "f_hat_next", outputs["f_hat_next"], before))
        if "x" in outputs:
            start = b - wanted.lengths[0]
            reference = wanted.inputs[:, start : start + wanted.lengths[scale + 1]]
            differences.append(difference(name, "x", outputs["x"], reference))
    return differences


def may_differ(wanted: TokenizerReferences | CodeReferences, unequal: Flags, error: float) -> Flags:
    """Return tokens [N, L] near a boundary, and all after a scale where one of those differs.

    `error` is the largest of the latent, relative to its RMS.
    """
    near = near_boundary(wanted.distances, wanted.latent, error)
    allowed: Flags = near.copy()
    for a, b in pairwise(np.cumsum([0, *wanted.lengths])):
        allowed[(unequal & near)[:, a:b].any(axis=1), b:] = True
    return allowed


def run_in_rows(session: Session, feeds: Mapping[str, Array], rows: int | None) -> Arrays:
    """Run a session in pieces of `rows` rows, which a static graph takes (None: all at once).

    The last piece is filled up with rows of its own.
    """
    if rows is None:
        return session.run(feeds)
    count = len(next(iter(feeds.values())))
    pieces = [
        session.run(
            {name: repeated_rows(array[a : a + rows], rows) for name, array in feeds.items()}
        )
        for a in range(0, count, rows)
    ]
    return {
        name: np.concatenate([piece[name] for piece in pieces])[:count] for name in session.outputs
    }


def repeated_rows(array: Array, rows: int) -> Array:
    """Return the first `rows` rows of the array, which is repeated if it has less."""
    return np.resize(array, (rows, *array.shape[1:]))
