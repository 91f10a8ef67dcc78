"""A checkpoint's tensors -> the PAR transformer they belong to, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import ExportError
from ..config_json import require_agreement
from ..strict import count_items, load_strictly, require_needed
from .par import ParTransformer
from .par_config import ParConfig, ParJson, usual_heads

CLASSES = "cls_embedding.embedding_table.weight"
SPECIAL = "spe_tok_embeddings.special_embeddings.weight"
NEEDED = {  # key: axes
    CLASSES: 2,
    SPECIAL: 2,
    "tok_embeddings.weight": 2,
    "layers.0.feed_forward.w1.weight": 2,
}


def infer_par_config(
    tensors: Mapping[str, Tensor], where: str, told: ParJson | None = None
) -> ParConfig:
    """The configuration that a checkpoint's keys and shapes imply.

    `told` is the `config.json` beside it: what shapes do not tell is taken from there, else it is
    that of the published sizes; what they tell must agree with it.

    Raises:
        ExportError: not a PAR transformer, sizes that contradict each other or `told`.
    """
    require_needed(tensors, NEEDED, "a PAR transformer", where)
    said = {} if told is None else told.told()
    vocab_size, width = tensors["tok_embeddings.weight"].shape
    own: dict[str, object] = {
        "depth": count_items(tensors, r"layers\.(\d+)\."),
        "width": width,
        "heads": usual_heads(width),
        "hidden": tensors["layers.0.feed_forward.w1.weight"].shape[0],
        "group": tensors[SPECIAL].shape[0] + 1,
        "num_classes": tensors[CLASSES].shape[0] - 1,
        "vocab_size": vocab_size,
    }
    untold = ("heads", "length", "rope_base", "norm_eps")
    own |= {name: said[name] for name in untold if name in said}
    try:
        config = ParConfig(**own)  # type: ignore[arg-type]
    except ExportError as error:
        # The configuration does not know which file it came from.
        raise ExportError(error.what, where=where, do=error.do) from error
    require_agreement(config, said, where)
    return config


def load_par(
    tensors: Mapping[str, Tensor], where: str, told: ParJson | None = None
) -> ParTransformer:
    """A float32 model in eval mode from the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_par_config(tensors, where, told)
    with torch.device("meta"):
        model = ParTransformer(config)
    load_strictly(model, tensors, where)
    return model
