"""A checkpoint's tensors -> the LlamaGen transformer they belong to, loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...errors import ExportError
from ...export.checkpoint.config_json import require_agreement, require_known
from ...export.checkpoint.strict import build_strictly, locating, require_needed
from ..shared.llama.checkpoint import NEEDED, infer_shapes
from ..shared.llama.config import LlamaConfig, LlamaJson
from .config import published_as
from .model import LlamagenTransformer

OF_PAR = "spe_tok_embeddings."


def infer_llamagen_config(
    tensors: Mapping[str, Tensor],
    where: str,
    config_json: LlamaJson | None = None,
    length: int | None = None,
) -> LlamaConfig:
    """Return the configuration that a checkpoint's keys and shapes imply.

    `config_json` is the `config.json` beside it, `length` the tokens of an image of the variant
    that was asked for. No shape tells the heads and the tokens of an image: they are taken from
    `config_json`, else from the variant, else from the published model of this size if there is
    only one. The angles' base and the norms' eps are the official code's unless given. What shapes
    tell must agree with `config_json`.

    Raises:
        ExportError: not a class-conditional LlamaGen, sizes that contradict each other or
            `config_json`, or what neither of them tells; names the key.
    """
    if any(name.startswith(OF_PAR) for name in tensors):
        raise ExportError(
            f"is not a LlamaGen transformer, but a PAR: it has {OF_PAR[:-1]}",
            where=where,
            do="export it as `par`",
        )
    require_needed(tensors, NEEDED, "a class-conditional LlamaGen transformer", where)
    said = {} if config_json is None else config_json.config_values()
    own = infer_shapes(tensors, said, where)
    depth, width = (int(str(own[name])) for name in ("depth", "width"))
    told_length = said.get("length", length)
    if told_length is None:
        told_length = published_length(depth, width, where)
    require_known("block_size", told_length, f"{depth} layers of width {width}", where)
    with locating(where):
        config = LlamaConfig(**own, length=told_length)  # type: ignore[arg-type]
    require_agreement(config, said, where)
    return config


def published_length(depth: int, width: int, where: str) -> int | None:
    """Return the tokens of an image of the only published model of this size; None: of none.

    Raises:
        ExportError: there are several, with the same shapes.
    """
    known = published_as(depth, width)
    if len(known) > 1:
        names = " or ".join(f"llamagen-{name}" for name in known)
        lengths = " or ".join(str(config.length) for config in known.values())
        raise ExportError(
            f"is {names}, whose tensors are alike, and nothing says which",
            where=where,
            do=f"export it by name, or write block_size {lengths} into a config.json beside it",
        )
    return next((config.length for config in known.values()), None)


def load_llamagen(
    tensors: Mapping[str, Tensor],
    where: str,
    config_json: LlamaJson | None = None,
    length: int | None = None,
) -> LlamagenTransformer:
    """Return a float32 model in eval mode from the transformer's tensors, loaded strictly.

    float32 tensors are taken as they are: those of a mapped file stay there.

    Raises:
        ExportError: missing, extra or misshapen keys (named), another model.
    """
    config = infer_llamagen_config(tensors, where, config_json, length)
    return build_strictly(lambda: LlamagenTransformer(config), tensors, where)
