"""The graphs of VAR's tokenizer in ONNX Runtime against PyTorch, on real images."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ExportError
from ..runtime.sessions.onnxruntime import fast_session
from .tokenizers.var_vqvae import VarVqvae
from .var_parity import Arrays, Difference, difference, require

# Two codes whose distances differ by less, relative to the RMS of distances, are a tie in float32.
TIE = 1e-4


@dataclass(frozen=True, slots=True)
class TokenizerReferences:
    """What PyTorch computes for N images; `ties` [N, L] says where its choice was nearly another.

    `inputs` are the transformer's of all scales but the first, [N, L - first, width].
    """

    lengths: tuple[int, ...]
    images: NDArray[np.float32]
    indices: NDArray[np.int64]
    ties: NDArray[np.bool_]
    latent: NDArray[np.float32]
    f_hat: NDArray[np.float32]
    features: NDArray[np.float32]
    inputs: NDArray[np.float32]
    decoded: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TokenParity:
    """Tokens that differ from PyTorch's; each behind one whose choice was nearly another."""

    tokens: int
    differ: int
    images_with_ties: int


@torch.inference_mode()
def compute_tokenizer_references(
    model: VarVqvae, word_embed: nn.Linear, images: Sequence[NDArray[np.float32]]
) -> TokenizerReferences:
    """Images are [1, 3, H, H] in [-1, 1]; `word_embed` is the transformer's."""
    stacked = np.concatenate(images)
    latent = model.encode(torch.from_numpy(stacked))
    indices = model.quantize.encode(latent)
    f_hat, features = model.quantize.decode_with_features(indices)
    return TokenizerReferences(
        lengths=model.config.lengths,
        images=stacked,
        indices=indices.numpy(),
        ties=near_ties(model, latent, indices).numpy(),
        latent=latent.numpy(),
        f_hat=f_hat.numpy(),
        features=features.numpy(),
        inputs=word_embed(features).numpy(),
        decoded=model.decode(f_hat).numpy(),
    )


def near_ties(model: VarVqvae, latent: Tensor, indices: Tensor) -> Tensor:
    """bool [N, L]: whether the second nearest code is as near as float error can tell."""
    quantize = model.quantize
    codebook = quantize.embedding.weight
    found = []
    for scale, codes in enumerate(quantize.split(indices)):
        distances = torch.cdist(quantize.shrink(scale, latent), codebook).square()
        nearest = distances.topk(2, dim=-1, largest=False).values
        margin = TIE * distances.square().mean().sqrt()
        found.append(nearest[..., 1] - nearest[..., 0] < margin)
        if scale < quantize.last:
            latent = latent - quantize.contribution(scale, codes)
    return torch.cat(found, dim=1)


def check_tokenizer_parity(
    folder: Path, wanted: TokenizerReferences
) -> tuple[TokenParity, tuple[Difference, ...]]:
    """Run every graph of the tokenizer; the updates from an empty f_hat on.

    Raises:
        ExportError: a difference above the tolerance, or a token that differs although neither
            its choice nor an earlier one was nearly another.
    """
    encoded = fast_session(folder / "encoder.onnx").run({"image": wanted.images})
    tokens = compare_tokens(encoded["indices"], wanted)
    found = [difference("encoder", "latent", encoded["latent"], wanted.latent)]
    gc.collect()
    decoded = fast_session(folder / "decoder.onnx").run({"latent": wanted.f_hat})
    found.append(difference("decoder", "image", decoded["image"], wanted.decoded))
    gc.collect()
    looked = fast_session(folder / "lookup.onnx").run({"indices": wanted.indices.astype(np.int32)})
    found.append(difference("lookup", "latent", looked["latent"], wanted.f_hat))
    found.append(difference("lookup", "features", looked["features"], wanted.features))
    found += check_updates(folder, wanted)
    for one in found:
        require(one)
    return tokens, tuple(found)


def check_updates(folder: Path, wanted: TokenizerReferences) -> list[Difference]:
    """Each update takes the f_hat that the one before it gave."""
    bounds = np.cumsum([0, *wanted.lengths])
    f_hat: NDArray[np.generic] = np.zeros_like(wanted.f_hat)
    found = []
    for scale, (a, b) in enumerate(pairwise(bounds)):
        name = f"update.{scale}"
        feeds: Arrays = {"tokens": wanted.indices[:, a:b], "f_hat": f_hat}
        outputs = fast_session(folder / f"{name}.onnx").run(feeds)
        f_hat = outputs["f_hat_next"]
        if "x" in outputs:
            start = b - wanted.lengths[0]
            reference = wanted.inputs[:, start : start + outputs["x"].shape[1]]
            found.append(difference(name, "x", outputs["x"], reference))
    found.append(difference(name, "f_hat_next", f_hat, wanted.f_hat))
    return found


def compare_tokens(indices: NDArray[np.generic], wanted: TokenizerReferences) -> TokenParity:
    """A code chosen otherwise changes all finer ones, so only what precedes any tie must agree."""
    unequal = indices != wanted.indices
    scale = np.repeat(np.arange(len(wanted.lengths)), wanted.lengths)
    for row, (wrong, tie) in enumerate(zip(unequal, wanted.ties, strict=True)):
        first_tie = scale[tie].min(initial=len(wanted.lengths))
        first_wrong = scale[wrong].min(initial=len(wanted.lengths))
        within = wrong & (scale == first_wrong)
        if first_wrong < first_tie or np.any(within & ~tie & (scale == first_tie)):
            raise ExportError(
                f"{int(wrong.sum())} of {wrong.size} tokens of image {row} differ from PyTorch, "
                f"the first at scale {first_wrong}, where no choice was close",
                where="encoder.onnx",
                do="report it with the checkpoint's name and the output of `arvg-trt doctor`",
            )
    return TokenParity(
        tokens=unequal.size,
        differ=int(unequal.sum()),
        images_with_ties=int(wanted.ties.any(axis=1).sum()),
    )
