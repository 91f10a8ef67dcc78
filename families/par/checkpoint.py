"""A checkpoint's tensors -> the PAR transformer they belong to, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...export.checkpoint.config_json import require_agreement, require_known
from ...export.checkpoint.strict import build_strictly, locating, require_needed
from ..shared.llama.checkpoint import CLASS_TABLE, NEEDED, infer_shapes
from .config import ParConfig, ParJson, published_length
from .model import SPECIAL, ParTransformer

SPECIAL_TABLE = f"{SPECIAL}.weight"
NEEDED_OF_PAR = {CLASS_TABLE: 2, SPECIAL_TABLE: 2} | NEEDED


def infer_par_config(
    tensors: Mapping[str, Tensor], where: str, config_json: ParJson | None = None
) -> ParConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    `config_json` is the `config.json` beside it. No shape tells the heads and the tokens of an
    image: they are taken from there, else from the official size with this depth and width. The
    angles' base and the norms' eps are the official code's unless given. What shapes tell must
    agree with `config_json`.

    Raises:
        ExportError: not a PAR transformer, sizes that contradict each other or `config_json`, or a
            size that is not official and that `config_json` leaves open; names the key.
    """
    require_needed(tensors, NEEDED_OF_PAR, "a PAR transformer", where)
    said = {} if config_json is None else config_json.config_values()
    own = infer_shapes(tensors, said, where)
    group = tensors[SPECIAL_TABLE].shape[0] + 1
    depth, width, heads = (int(str(own[name])) for name in ("depth", "width", "heads"))
    length = said.get("length", published_length(depth, width, heads, group))
    require_known("block_size", length, f"{depth} layers of width {width}", where)
    with locating(where):
        config = ParConfig(**own, length=length, group=group)  # type: ignore[arg-type]
    require_agreement(config, said, where)
    return config


def load_par(
    tensors: Mapping[str, Tensor], where: str, config_json: ParJson | None = None
) -> ParTransformer:
    """Return a float32 model in eval mode from the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_par_config(tensors, where, config_json)
    return build_strictly(lambda: ParTransformer(config), tensors, where)
