"""Define what decides the shapes of a PAR transformer. Torch-free: models are listed without it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...errors import ExportError
from ...runtime.spec import Defaults
from ..shared.llama.config import OFFICIAL, LlamaConfig, LlamaJson


@dataclass(frozen=True, slots=True)
class ParConfig(LlamaConfig):
    """Everything that decides the shapes and the arithmetic of a PAR transformer.

    The token map is sqrt(``group``) x sqrt(``group``) regions; ``group`` tokens, one of each
    region, are predicted at once.
    """

    group: int = 4

    def __post_init__(self) -> None:
        LlamaConfig.__post_init__(self)
        regions = math.isqrt(max(self.group, 0))
        if (
            self.group < 4
            or regions**2 != self.group
            or self.side % regions
            or self.side == regions
        ):
            raise ExportError(
                f"predicts {self.group} tokens at once, not one of each of 2x2 or more regions of "
                f"several cells of a map of {self.side}x{self.side}",
                do="check block_size in config.json",
            )

    @property
    def special(self) -> int:
        """Return the number of tokens that, behind the last single one, begin the first group."""
        return self.group - 1

    @property
    def special_tokens(self) -> int:
        """Return the first row of the special tokens in the table of all tokens."""
        return self.vocab_size + self.num_classes + 1


SIZES = {size: OFFICIAL[size] for size in ("l", "xl", "xxl", "3b")}
GROUPS = (4, 16)
PUBLISHED = {
    f"{size}-{group}x": ParConfig(*numbers, group=group)
    for size, numbers in SIZES.items()
    for group in GROUPS
}
# The guidance of the published evaluations; for others the official sampler's own.
CFG = {"xl-4x": 1.5, "xxl-4x": 1.435, "3b-4x": 1.345, "3b-16x": 1.5}
DEFAULT_CFG = 1.5


def sampling_of(config: ParConfig) -> Defaults:
    """Return the published sampling of this size, else the official sampler's."""
    name = next((name for name, known in PUBLISHED.items() if known == config), "")
    return Defaults(cfg=CFG.get(name, DEFAULT_CFG), top_k=0, top_p=1.0)


def published_length(depth: int, width: int, heads: int, group: int) -> int | None:
    """Return the tokens of an image of the published model of this size; None for any other."""
    size = (depth, width, heads)
    fits = size in SIZES.values() and group in GROUPS
    return next(iter(PUBLISHED.values())).length if fits else None


class ParJson(LlamaJson, frozen=True, kw_only=True):
    """The keys of a `config.json` that are read, with the tokens that are predicted at once."""

    renamed: ClassVar = {**LlamaJson.renamed, "ar_token_num": "group"}
    ar_token_num: int | None = None
