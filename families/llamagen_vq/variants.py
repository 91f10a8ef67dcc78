"""List LlamaGen's VQ as a model; its file may be of any size."""

from __future__ import annotations

from ..base import Variant
from .config import HUB, PUBLISHED_VQ16, VQ8_FILE, VQ16_FILE

FILES = (
    *((f"{name}.{kind}",) for name in (VQ16_FILE, VQ8_FILE) for kind in ("pt", "safetensors")),
    ("tokenizer.safetensors",),
)
VARIANTS = (
    Variant(
        "llamagen-vq", "llamagen_vq", 71_883_403, None, FILES, HUB, published=(PUBLISHED_VQ16,)
    ),
)
