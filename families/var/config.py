"""Define what decides the shapes of a VAR transformer, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...errors import ExportError
from ...export.checkpoint.config_json import read_beside
from ...runtime.spec import Defaults
from ..var_vqvae.config import PATCH_NUMS_256


@dataclass(frozen=True, slots=True)
class VarConfig:
    """Hold everything that decides the shapes and the arithmetic of a VAR transformer.

    ``patch_nums`` are the sides of the token maps, coarse to fine. ``shared_aln``: one modulation
    linear for all blocks, with a table a block. ``attn_l2_norm``: q and k have unit length and a
    learned scale a head; without it scores are scaled by 0.25 / sqrt(head_dim).
    """

    depth: int
    width: int
    heads: int
    patch_nums: tuple[int, ...] = PATCH_NUMS_256
    hidden: int = 0
    num_classes: int = 1000
    vocab_size: int = 4096
    latent_channels: int = 32
    shared_aln: bool = False
    attn_l2_norm: bool = True
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden == 0:
            object.__setattr__(self, "hidden", 4 * self.width)
        sizes = {
            name: getattr(self, name)
            for name in ("depth", "width", "heads", "hidden", "num_classes", "vocab_size")
        }
        small = [f"{name} {value}" for name, value in sizes.items() if value < 1]
        if small or self.latent_channels < 1 or not self.norm_eps > 0:
            raise ExportError(f"has {', '.join(small) or 'sizes'} below 1", do="use another file")
        if self.width % self.heads:
            raise ExportError(
                f"has width {self.width}, not a multiple of {self.heads} heads",
                do="check num_heads in config.json",
            )
        rising = all(a < b for a, b in zip(self.patch_nums, self.patch_nums[1:], strict=False))
        if len(self.patch_nums) < 2 or self.patch_nums[0] < 1 or not rising:
            raise ExportError(
                f"has patch numbers {list(self.patch_nums)}, not two or more that rise from 1",
                do="check lvl_1L, and patch_nums in config.json",
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def length(self) -> int:
        """Return the number of tokens of an image over all scales."""
        return sum(p * p for p in self.patch_nums)

    @property
    def first_length(self) -> int:
        return self.patch_nums[0] ** 2

    @property
    def bounds(self) -> tuple[int, ...]:
        """Return where each scale begins, and the length: 0, 1, 5, 14, ... 680."""
        sums = [0]
        for p in self.patch_nums:
            sums.append(sums[-1] + p * p)
        return tuple(sums)


def published(depth: int, patch_nums: tuple[int, ...], shared_aln: bool = False) -> VarConfig:
    """Return a published size's configuration: width 64 * depth, as many heads as blocks."""
    return VarConfig(depth, 64 * depth, depth, patch_nums, shared_aln=shared_aln)


def official_heads(depth: int, width: int) -> int | None:
    """Return the heads by the rule of the published sizes; None for another width."""
    return depth if width == 64 * depth else None


class VarJson(msgspec.Struct, frozen=True, kw_only=True):
    """Read the keys of a `config.json` beside the weights; others are for training.

    `sampling` is what the model generates with unless told otherwise.
    """

    patch_nums: tuple[int, ...] | None = None
    num_heads: int | None = None
    depth: int | None = None
    embed_dim: int | None = None
    num_classes: int | None = None
    shared_aln: bool | None = None
    attn_l2_norm: bool | None = None
    norm_eps: float | None = None
    sampling: Defaults | None = None

    def config_values(self) -> dict[str, object]:
        """Return what the file says, by the names of `VarConfig`."""
        renamed = {"num_heads": "heads", "embed_dim": "width"}
        names = set(self.__struct_fields__) - {"sampling"}
        fields = {renamed.get(k, k): getattr(self, k) for k in names}
        return {name: value for name, value in fields.items() if value is not None}


def read_config_json(folder: Path) -> VarJson:
    """Return the `config.json` of a folder; without one, all keys are unset.

    Raises:
        ExportError: not JSON, or a key of another type.
    """
    return read_beside(folder, VarJson)
