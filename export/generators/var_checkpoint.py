"""A checkpoint's tensors -> the VAR transformer they belong to, loaded strictly."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import ExportError
from ..config_json import require_agreement
from ..strict import count_items, load_strictly, require_constants, require_needed
from .var import VarTransformer, official_levels, official_mask
from .var_config import VarConfig, VarJson

# -inf by design, where other tensors hold none.
INFINITE = ("attn_bias_for_masking",)
HEAD_DIM = 64  # of every published size; where no tensor tells the heads
NEEDED = {  # key: axes
    "class_emb.weight": 2,
    "word_embed.weight": 2,
    "head.weight": 2,
    "pos_start": 3,
    "lvl_1L": 2,
    "blocks.0.attn.mat_qkv.weight": 2,
    "blocks.0.ffn.fc1.weight": 2,
}


def infer_config(
    tensors: Mapping[str, Tensor], where: str, told: VarJson | None = None
) -> VarConfig:
    """The configuration that a checkpoint's keys and shapes imply.

    `told` is the `config.json` beside it: what shapes do not tell (heads without a learned scale,
    the norms' eps) is taken from there, and what they tell must agree with it.

    Raises:
        ExportError: not a VAR transformer, sizes that contradict each other or `told`.
    """
    require_needed(tensors, NEEDED, "a VAR transformer", where)
    said = {} if told is None else told.told()
    classes, width = tensors["class_emb.weight"].shape
    scale = tensors.get("blocks.0.attn.scale_mul_1H11")
    heads = said.get("heads", max(1, width // HEAD_DIM)) if scale is None else scale.numel()
    try:
        config = VarConfig(
            depth=count_items(tensors, r"blocks\.(\d+)\."),
            width=width,
            heads=int(str(heads)),
            patch_nums=infer_patch_nums(tensors["lvl_1L"]),
            hidden=tensors["blocks.0.ffn.fc1.weight"].shape[0],
            num_classes=classes - 1,
            vocab_size=tensors["head.weight"].shape[0],
            latent_channels=tensors["word_embed.weight"].shape[1],
            shared_aln="shared_ada_lin.1.weight" in tensors,
            attn_l2_norm=scale is not None,
            norm_eps=float(str(said.get("norm_eps", 1e-6))),
        )
    except ExportError as error:
        # The configuration does not know which file it came from.
        raise ExportError(error.what, where=where, do=error.do) from error
    require_agreement(config, said, where)
    return config


def infer_patch_nums(levels: Tensor) -> tuple[int, ...]:
    """Sides of the token maps from `lvl_1L`, the scale of each token.

    Raises:
        ExportError: not consecutive runs of squares.
    """
    runs = torch.unique_consecutive(levels.flatten(), return_counts=True)
    counts = [int(n) for n in runs[1]]
    sides = tuple(math.isqrt(n) for n in counts)
    in_order = [int(v) for v in runs[0]] == list(range(len(counts)))
    if not in_order or any(s * s != n for s, n in zip(sides, counts, strict=True)):
        raise ExportError(
            f"has {counts} tokens a scale in lvl_1L, not squares of scales in order",
            do="use another checkpoint",
        )
    return sides


def load_var(
    tensors: Mapping[str, Tensor], where: str, told: VarJson | None = None
) -> VarTransformer:
    """A float32 model in eval mode from the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model, odd buffers.
    """
    config = infer_config(tensors, where, told)
    with torch.device("meta"):
        model = VarTransformer(config)
    load_strictly(model, tensors, where)
    zeros = torch.zeros(config.width)
    constants = {f"blocks.{i}.attn.zero_k_bias": zeros for i in range(config.depth)}
    constants |= {"lvl_1L": official_levels(config), INFINITE[0]: official_mask(config)}
    require_constants(tensors, constants, where)
    return model
