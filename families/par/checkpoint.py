"""A checkpoint's tensors -> the PAR transformer they belong to, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...export.checkpoint.config_json import require_agreement, require_known
from ...export.checkpoint.strict import build_strictly, count_items, locating, require_needed
from .config import ParConfig, ParJson, official_heads, published_length
from .model import ParTransformer

CLASSES = "cls_embedding.embedding_table.weight"
SPECIAL = "spe_tok_embeddings.special_embeddings.weight"
NEEDED = {  # key: axes
    CLASSES: 2,
    SPECIAL: 2,
    "tok_embeddings.weight": 2,
    "layers.0.feed_forward.w1.weight": 2,
}


def infer_par_config(
    tensors: Mapping[str, Tensor], where: str, config_json: ParJson | None = None
) -> ParConfig:
    """The configuration that a checkpoint's keys and shapes imply.

    `config_json` is the `config.json` beside it. No shape tells the heads and the tokens of an
    image: they are taken from there, else from the official size with this depth and width. The
    angles' base and the norms' eps are the official code's unless given. What shapes tell must
    agree with `config_json`.

    Raises:
        ExportError: not a PAR transformer, sizes that contradict each other or `config_json`, or a
            size that is not official and that `config_json` leaves open; names the key.
    """
    require_needed(tensors, NEEDED, "a PAR transformer", where)
    said = {} if config_json is None else config_json.config_values()
    vocab_size, width = tensors["tok_embeddings.weight"].shape
    depth, group = count_items(tensors, r"layers\.(\d+)\."), tensors[SPECIAL].shape[0] + 1
    heads = said.get("heads", official_heads(depth, width))
    require_known("n_head", heads, f"{depth} layers of width {width}", where)
    length = said.get("length", published_length(depth, width, int(str(heads)), group))
    require_known("block_size", length, f"{depth} layers of width {width}", where)
    own: dict[str, object] = {
        "depth": depth,
        "width": width,
        "heads": heads,
        "hidden": tensors["layers.0.feed_forward.w1.weight"].shape[0],
        "length": length,
        "group": group,
        "num_classes": tensors[CLASSES].shape[0] - 1,
        "vocab_size": vocab_size,
    }
    own |= {name: said[name] for name in ("rope_base", "norm_eps") if name in said}
    with locating(where):
        config = ParConfig(**own)  # type: ignore[arg-type]
    require_agreement(config, said, where)
    return config


def load_par(
    tensors: Mapping[str, Tensor], where: str, config_json: ParJson | None = None
) -> ParTransformer:
    """A float32 model in eval mode from the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_par_config(tensors, where, config_json)
    return build_strictly(lambda: ParTransformer(config), tensors, where)
