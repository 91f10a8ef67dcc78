"""Define what decides the shapes of a Cosmos image tokenizer, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from ...errors import ExportError

FSQ_LEVELS = (8, 8, 8, 5, 5, 5)
HAAR = "haar"


@dataclass(frozen=True, slots=True)
class CosmosConfig:
    """Hold everything that decides the shapes of a Cosmos image tokenizer.

    ``levels`` is the FSQ grid of a DI model, empty for CI. ``latent_channels`` is what leaves
    ``quant_conv``: the number of FSQ dimensions (DI) or of continuous channels (CI).
    """

    channels: int = 128
    channels_mult: tuple[int, ...] = (2, 4, 4)
    num_res_blocks: int = 2
    patch_size: int = 4
    spatial_compression: int = 8
    z_channels: int = 256
    latent_channels: int = 6
    levels: tuple[int, ...] = FSQ_LEVELS

    def __post_init__(self) -> None:
        if self.levels and len(self.levels) != self.latent_channels:
            raise ExportError(
                f"{len(self.levels)} FSQ levels for {self.latent_channels} latent channels",
                do="give one level per latent channel",
            )
        if self.num_resamplings < 0 or self.num_resamplings > len(self.channels_mult):
            raise ExportError(
                f"compression {self.spatial_compression} does not fit patch {self.patch_size} "
                f"and {len(self.channels_mult)} levels",
                do="check the checkpoint's downsample and upsample keys",
            )

    @property
    def discrete(self) -> bool:
        return bool(self.levels)

    @property
    def num_resamplings(self) -> int:
        return int(math.log2(self.spatial_compression)) - int(math.log2(self.patch_size))

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.channels_mult)


class CosmosJson(msgspec.Struct, frozen=True, kw_only=True):
    """Read the keys of a `config.json` by their official names.

    Only `levels` and `patch_method` are in no shape, and TorchScript archives have the levels. A
    model without levels (CI) says `[]`.
    """

    levels: tuple[int, ...] | None = None
    patch_method: str | None = None
    channels: int | None = None
    channels_mult: tuple[int, ...] | None = None
    num_res_blocks: int | None = None
    patch_size: int | None = None
    spatial_compression: int | None = None
    z_channels: int | None = None

    def config_values(self) -> dict[str, object]:
        """Return what the file says, by the names of `CosmosConfig`."""
        names = set(self.__struct_fields__) - {"patch_method"}
        fields = {name: getattr(self, name) for name in names}
        return {name: value for name, value in fields.items() if value is not None}
