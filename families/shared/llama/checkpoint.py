"""Infer the configuration of LlamaGen's transformer from its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ....export.checkpoint.config_json import require_known
from ....export.checkpoint.strict import count_items
from .config import official_heads
from .model import CLASSES, TOKENS

CLASS_TABLE, TOKEN_TABLE = f"{CLASSES}.weight", f"{TOKENS}.weight"
FIRST = "layers.0.feed_forward.w1.weight"
NEEDED = {CLASS_TABLE: 2, TOKEN_TABLE: 2, FIRST: 2}  # key: axes


def infer_shapes(
    tensors: Mapping[str, Tensor], said: Mapping[str, object], where: str
) -> dict[str, object]:
    """Return all fields of the configuration but the tokens of an image; `NEEDED` are there.

    `said` is what the `config.json` beside it says: no shape tells the heads, which are else the
    official size's with this depth and width. The angles' base and the norms' eps are in what is
    returned only if they are said.

    Raises:
        ExportError: no official size, and `said` leaves the heads open.
    """
    vocab_size, width = tensors[TOKEN_TABLE].shape
    depth = count_items(tensors, r"layers\.(\d+)\.")
    heads = said.get("heads", official_heads(depth, width))
    require_known("n_head", heads, f"{depth} layers of width {width}", where)
    found: dict[str, object] = {
        "depth": depth,
        "width": width,
        "heads": heads,
        "hidden": tensors[FIRST].shape[0],
        "num_classes": tensors[CLASS_TABLE].shape[0] - 1,
        "vocab_size": vocab_size,
    }
    return found | {name: said[name] for name in ("rope_base", "norm_eps") if name in said}
