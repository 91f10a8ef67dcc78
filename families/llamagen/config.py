"""The published sizes of LlamaGen. Torch-free: models are listed without it."""

from __future__ import annotations

from ...runtime.spec import Defaults
from ..shared.llama.config import OFFICIAL, LlamaConfig

LENGTHS = {256: 256, 384: 576}  # tokens of an image by its side in pixels
PUBLISHED = {
    f"{size}-{side}": LlamaConfig(*OFFICIAL[size], length=LENGTHS[side])
    for size, side in (
        *(("b", 256), ("b", 384), ("l", 256), ("l", 384)),
        *(("xl", 384), ("xxl", 384), ("3b", 384)),
    )
}
# The guidance of the published evaluations, which shrink 384 pixels to 256; for others the
# official sampler's own.
CFG = {"b-384": 2.0, "l-384": 2.0, "xl-384": 1.75, "xxl-384": 1.75, "3b-384": 1.65}
DEFAULT_CFG = 1.5


def sampling_of(config: LlamaConfig) -> Defaults:
    """Return the published sampling of this size, else the official sampler's."""
    name = next((name for name, known in PUBLISHED.items() if known == config), "")
    return Defaults(cfg=CFG.get(name, DEFAULT_CFG), top_k=0, top_p=1.0)


def published_as(depth: int, width: int) -> dict[str, LlamaConfig]:
    """Return the published models of this depth and width, by their names."""
    size = depth, width
    return {name: known for name, known in PUBLISHED.items() if (known.depth, known.width) == size}
