"""A checkpoint's tensors -> the MAR transformers they belong to, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import ExportError
from ..strict import count_items, load_strictly, require_needed
from .mar import MarTransformer
from .mar_config import MarConfig, MarJson, heads_of

NEEDED = {  # key: axes
    "class_emb.weight": 2,
    "z_proj.weight": 2,
    "encoder_pos_embed_learned": 3,
    "diffusion_pos_embed_learned": 3,
    "encoder_blocks.0.mlp.fc1.weight": 2,
    "diffloss.net.time_embed.mlp.0.weight": 2,
}


def infer_mar_config(
    tensors: Mapping[str, Tensor], where: str, told: MarJson | None = None
) -> MarConfig:
    """The configuration that a checkpoint's keys and shapes imply.

    `told` is the `config.json` beside it: no shape tells the heads (without it, those of the
    published size of this width, else of 64 features each), the scale of the latents, the norms'
    eps.

    Raises:
        ExportError: not a MAR, or sizes that contradict each other.
    """
    require_needed(tensors, NEEDED, "a MAR", where)
    said = {} if told is None else told.told()
    classes, width = tensors["class_emb.weight"].shape
    length = tensors["diffusion_pos_embed_learned"].shape[1]
    head_width, frequencies = tensors["diffloss.net.time_embed.mlp.0.weight"].shape
    try:
        return MarConfig(
            encoder_depth=count_items(tensors, r"encoder_blocks\.(\d+)\."),
            decoder_depth=count_items(tensors, r"decoder_blocks\.(\d+)\."),
            width=width,
            head_depth=count_items(tensors, r"diffloss\.net\.res_blocks\.(\d+)\."),
            head_width=head_width,
            hidden=tensors["encoder_blocks.0.mlp.fc1.weight"].shape[0],
            length=length,
            buffer=tensors["encoder_pos_embed_learned"].shape[1] - length,
            latent_channels=tensors["z_proj.weight"].shape[1],
            num_classes=classes,
            frequencies=frequencies,
            **{"heads": heads_of(width), **said},  # type: ignore[arg-type]
        )
    except ExportError as error:
        # The configuration does not know which file it came from.
        raise ExportError(error.what, where=where, do=error.do) from error


def load_mar(
    tensors: Mapping[str, Tensor], where: str, told: MarJson | None = None
) -> MarTransformer:
    """A float32 model in eval mode from the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_mar_config(tensors, where, told)
    with torch.device("meta"):
        model = MarTransformer(config)
    load_strictly(model, tensors, where)
    return model
