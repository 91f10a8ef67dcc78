"""The graphs of VAR's tokenizer in ONNX Runtime against PyTorch, on real images.

PyTorch computes first and is let go; then one graph at a time is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ExportError
from ..runtime.sessions.onnxruntime import fast_session
from .tokenizers.var_quantizer import MultiScaleQuantizer
from .tokenizers.var_vqvae import VarVqvae
from .var_parity import Difference, difference, require

Floats = NDArray[np.float32]
LEAST_ERROR = 1e-6  # of float32 convolutions, relative; a smaller one measured is luck
ERRORS = 4  # how far from a boundary, in measured errors, a code may still differ


@dataclass(frozen=True, slots=True)
class VqvaeReferences:
    """What PyTorch computes for images [N, 3, H, H].

    `codes` int64 [N, L]; `distances` [N, L], how far what each code stands for lies from the
    boundary to the second nearest; `sums` and `inputs`: f_hat behind every scale, and what
    the transformer is given behind every scale but the last.
    """

    lengths: tuple[int, ...]
    image: Floats
    latent: Floats
    codes: NDArray[np.int64]
    distances: Floats
    sums: tuple[Floats, ...]
    inputs: tuple[Floats, ...]
    features: Tensor
    decoded: Floats


@dataclass(frozen=True, slots=True)
class VqvaeParity:
    """Differences of all tensors; of the tokens, how many differ, and how many of them may.

    A token may differ where what it stands for lies within float error of the boundary between
    two codes, or where an earlier scale of its image has such a token.
    """

    differences: tuple[Difference, ...]
    tokens: int
    indices_differ: int
    at_boundary: int


@torch.inference_mode()
def compute_vqvae_references(
    model: VarVqvae, word_embed: nn.Linear, images: Sequence[Floats]
) -> VqvaeReferences:
    """`images` are [1, 3, H, H] in [-1, 1]; `word_embed` is the transformer's."""
    quantizer = model.quantize
    image = torch.from_numpy(np.concatenate(images))
    latent = model.encode(image)
    codes = quantizer.encode(latent)
    total = torch.zeros_like(latent)
    distances, sums, shown = [], [], []
    for scale, part in enumerate(quantizer.split(codes)):
        distances.append(boundary_distance(quantizer, scale, latent - total))
        total = total + quantizer.contribution(scale, part)
        sums.append(total.numpy())
        if scale < quantizer.last:
            shown.append(quantizer.shrink(scale + 1, total))
    return VqvaeReferences(
        lengths=model.config.lengths,
        image=image.numpy(),
        latent=latent.numpy(),
        codes=codes.numpy(),
        distances=torch.cat(distances, dim=1).numpy(),
        sums=tuple(sums),
        inputs=tuple(word_embed(x).numpy() for x in shown),
        features=torch.cat(shown, dim=1),
        decoded=model.decode(total).numpy(),
    )


def boundary_distance(quantizer: MultiScaleQuantizer, scale: int, residual: Tensor) -> Tensor:
    """[N, C, h, w] -> [N, p*p]: distance to the plane between the nearest two codes."""
    vectors = quantizer.shrink(scale, residual).double()
    codebook = quantizer.embedding.weight.double()
    scores = vectors @ codebook.T - 0.5 * codebook.square().sum(dim=1)
    best, which = scores.topk(2, dim=-1)
    apart = (codebook[which[..., 0]] - codebook[which[..., 1]]).norm(dim=-1)
    distance: Tensor = (best[..., 0] - best[..., 1]) / apart.clamp_min(torch.finfo().tiny)
    return distance.float()


def check_vqvae_parity(folder: Path, wanted: VqvaeReferences) -> VqvaeParity:
    """Run encoder, lookup, every update and decoder, each on PyTorch's inputs.

    Raises:
        ExportError: a difference above the tolerance, or a token that differs away from any
            boundary between two codes.
    """
    encoded = fast_session(folder / "encoder.onnx").run({"image": wanted.image})
    found = [difference("encoder", "latent", encoded["latent"], wanted.latent)]
    indices = wanted.codes.astype(np.int32)
    looked_up = fast_session(folder / "lookup.onnx").run({"indices": indices})
    found.append(difference("lookup", "latent", looked_up["latent"], wanted.sums[-1]))
    features = wanted.features.numpy()
    found.append(difference("lookup", "features", looked_up["features"], features))
    found += check_updates(folder, wanted)
    decoded = fast_session(folder / "decoder.onnx").run({"latent": wanted.sums[-1]})["image"]
    found.append(difference("decoder", "image", decoded, wanted.decoded))
    for one in found:
        require(one)
    unequal = encoded["indices"] != wanted.codes
    excused = unequal & may_differ(wanted, unequal, found[0].max)
    parity = VqvaeParity(
        tuple(found), unequal.size, int(unequal.sum()), int((unequal & excused).sum())
    )
    require_tokens(parity)
    return parity


def check_updates(folder: Path, wanted: VqvaeReferences) -> list[Difference]:
    """Each update on PyTorch's tokens and f_hat."""
    found = []
    starts = np.cumsum(wanted.lengths)[:-1]
    before = np.zeros_like(wanted.sums[0])
    for scale, tokens in enumerate(np.split(wanted.codes, starts, axis=1)):
        name = f"update.{scale}"
        outputs = fast_session(folder / f"{name}.onnx").run({"tokens": tokens, "f_hat": before})
        before = wanted.sums[scale]
        found.append(difference(name, "f_hat_next", outputs["f_hat_next"], before))
        if scale < len(wanted.inputs):
            found.append(difference(name, "x", outputs["x"], wanted.inputs[scale]))
    return found


def may_differ(
    wanted: VqvaeReferences, unequal: NDArray[np.bool_], error: float
) -> NDArray[np.bool_]:
    """[N, L]: tokens near a boundary, and all behind a scale where one of those differs.

    `error` is the largest of the latent, relative to its RMS; a vector of C such errors is
    sqrt(C) times as long.
    """
    channels = wanted.latent.shape[1]
    rms = float(np.sqrt(np.mean(np.square(wanted.latent, dtype=np.float64))))
    reach = ERRORS * max(error, LEAST_ERROR) * rms * channels**0.5
    allowed: NDArray[np.bool_] = np.less(wanted.distances, reach)
    end = 0
    for length in wanted.lengths:
        scale = slice(end, end := end + length)
        follows = (unequal & allowed)[:, scale].any(axis=1)
        allowed[:, end:] |= follows[:, None]
    return allowed


def require_tokens(parity: VqvaeParity) -> None:
    if parity.indices_differ > parity.at_boundary:
        raise ExportError(
            f"{parity.indices_differ - parity.at_boundary} of {parity.tokens} tokens differ from "
            "PyTorch away from any boundary between two codes",
            where="encoder.onnx",
            do="report it with the checkpoint's name and the output of `arvg-trt doctor`",
        )
