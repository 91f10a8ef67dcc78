"""Load the tensors of a VAR checkpoint strictly into the transformer they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import ExportError
from ...export.checkpoint.config_json import require_agreement, require_known
from ...export.checkpoint.strict import (
    build_strictly,
    count_items,
    locating,
    require_constants,
    require_needed,
)
from .config import VarConfig, VarJson, official_heads
from .model import VarTransformer, official_levels, official_mask

# -inf by design, where other tensors hold none.
INFINITE = ("attn_bias_for_masking",)
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
    tensors: Mapping[str, Tensor], where: str, config_json: VarJson | None = None
) -> VarConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    `config_json` is the `config.json` beside it: what shapes do not tell is taken from there, and
    what they tell must agree with it. Heads without a learned scale are else those of the official
    rule, and the norms' eps is the official code's.

    Raises:
        ExportError: not a VAR transformer, sizes that contradict each other or `config_json`, or
            heads that neither a tensor, nor the official rule, nor `config_json` gives.
    """
    require_needed(tensors, NEEDED, "a VAR transformer", where)
    said = {} if config_json is None else config_json.config_values()
    classes, width = tensors["class_emb.weight"].shape
    scales = (v for k, v in tensors.items() if k.endswith(".attn.scale_mul_1H11"))
    scale = next(scales, None)
    depth = count_items(tensors, r"blocks\.(\d+)\.")
    heads = said.get("heads", official_heads(depth, width)) if scale is None else scale.numel()
    require_known("num_heads", heads, f"{depth} blocks of width {width}", where)
    with locating(where):
        config = VarConfig(
            depth=depth,
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
    require_agreement(config, said, where)
    return config


def infer_patch_nums(levels: Tensor) -> tuple[int, ...]:
    """Return the sides of the token maps, from `lvl_1L`, the scale of each token.

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
    tensors: Mapping[str, Tensor], where: str, config_json: VarJson | None = None
) -> VarTransformer:
    """Return a float32 model in eval mode with the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model, odd buffers.
    """
    config = infer_config(tensors, where, config_json)
    model = build_strictly(lambda: VarTransformer(config), tensors, where)
    zeros = torch.zeros(config.width)
    constants = {f"blocks.{i}.attn.zero_k_bias": zeros for i in range(config.depth)}
    constants |= {"lvl_1L": official_levels(config), INFINITE[0]: official_mask(config)}
    require_constants(tensors, constants, where)
    return model
