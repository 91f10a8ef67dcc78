"""What decides a GSQ tokenizer's shapes and arithmetic; torch-free, for the zoo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import ExportError

Normalization = Literal["l2", "l1", "clip", "none"]


@dataclass(frozen=True, slots=True)
class GsqConfig:
    """A tokenizer of the GSQ family (FlexTokenizer, arXiv 2412.02632); F8-D8-V64k by default.

    ``latent_channels`` are divided into ``groups`` of neighbours, each of which gets a code of its
    own from one codebook. ``normalization`` is what vectors and codes pass before they are
    compared; a checkpoint's shapes do not tell it.
    """

    channels: int = 128
    channels_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    latent_channels: int = 8
    groups: int = 1
    vocab_size: int = 1 << 16
    normalization: Normalization = "l2"

    def __post_init__(self) -> None:
        if self.groups < 1 or self.latent_channels < 1 or self.latent_channels % self.groups:
            raise ExportError(
                f"has {self.latent_channels} latent channels for {self.groups} groups",
                do="the channels must be a multiple of the groups",
            )
        if self.normalization == "clip" and self.code_channels != 1:
            raise ExportError(
                f"clips codes of {self.code_channels} channels", do="only codes of one are clipped"
            )

    @property
    def stride(self) -> int:
        return 1 << (len(self.channels_mult) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.channels_mult)

    @property
    def code_channels(self) -> int:
        """Length of the codebook's rows."""
        return self.latent_channels // self.groups
