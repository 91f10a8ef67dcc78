"""A checkpoint's tensors -> the RAR transformer they belong to, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import ExportError
from ...export.checkpoint.strict import build_strictly, count_items, locating, require_needed
from .config import SPARE_STEPS, RarConfig
from .model import RarTransformer

NEEDED = {  # key: axes
    "embeddings.weight": 2,
    "lm_head.weight": 2,
    "timesteps_embeddings": 3,
    "target_aware_pos_embed": 3,
    "blocks.0.attn.q_norm.weight": 1,
    "blocks.0.mlp.fc1.weight": 2,
}


def infer_rar_config(tensors: Mapping[str, Tensor], where: str) -> RarConfig:
    """The configuration that a checkpoint's keys and shapes imply; they tell all of it.

    Raises:
        ExportError: not a RAR transformer, or sizes that contradict each other.
    """
    require_needed(tensors, NEEDED, "a RAR transformer", where)
    rows, width = tensors["embeddings.weight"].shape
    vocab_size = tensors["lm_head.weight"].shape[0]
    head_dim = tensors["blocks.0.attn.q_norm.weight"].numel()
    if not head_dim or width % head_dim:
        raise ExportError(
            f"has width {width}, not a multiple of heads of {head_dim}",
            where=where,
            do="use the checkpoint of a RAR",
        )
    with locating(where):
        return RarConfig(
            depth=count_items(tensors, r"blocks\.(\d+)\."),
            width=width,
            heads=width // head_dim,
            hidden=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            length=tensors["timesteps_embeddings"].shape[1] - SPARE_STEPS,
            num_classes=rows - vocab_size - 2,
            vocab_size=vocab_size,
        )


def load_rar(tensors: Mapping[str, Tensor], where: str) -> RarTransformer:
    """A float32 model in eval mode from the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_rar_config(tensors, where)
    return build_strictly(lambda: RarTransformer(config), tensors, where)
