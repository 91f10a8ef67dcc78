"""Define what decides a GSQ tokenizer's shapes and arithmetic, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import ExportError
from ..shared.pyramid import Pyramid

Normalization = Literal["l2", "l1", "clip", "none"]


@dataclass(frozen=True, slots=True)
class GsqConfig(Pyramid):
    """Describe a tokenizer of the GSQ family (FlexTokenizer, arXiv 2412.02632).

    The default is F8-D8-V64k. ``latent_channels`` are divided into ``groups`` of neighbours, each
    of which gets its own code from one codebook. ``normalization`` is applied to vectors and codes
    before they are compared; a checkpoint's shapes do not tell it.
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
    def code_channels(self) -> int:
        """Return the length of the codebook's rows."""
        return self.latent_channels // self.groups


WIDTHS = {8: (1, 2, 2, 4), 16: (1, 1, 2, 2, 4), 32: (1, 1, 2, 2, 4, 4)}  # by stride


def published(
    stride: int,
    latent_channels: int,
    groups: int,
    thousands: int,
    normalization: Normalization = "l2",
) -> GsqConfig:
    """Return the configuration that an official name tells: a name's k is 1,024 codes."""
    return GsqConfig(
        channels_mult=WIDTHS[stride],
        latent_channels=latent_channels,
        groups=groups,
        vocab_size=thousands << 10,
        normalization=normalization,
    )


# Official name: configuration, parameters.
PUBLISHED: dict[str, tuple[GsqConfig, int]] = {
    "F8-D8-V16k": (published(8, 8, 1, 16), 71_072_907),
    "F8-D8-V64k": (published(8, 8, 1, 64), 71_466_123),
    "F8-D8-V512k": (published(8, 8, 1, 512), 75_136_139),
    "F8-D16-V8k": (published(8, 16, 1, 8), 71_138_451),
    "F8-D16-V16k": (published(8, 16, 1, 16), 71_269_523),
    "F8-D16-V64k": (published(8, 16, 1, 64), 72_055_955),
    "F8-D16-V256k": (published(8, 16, 1, 256), 75_201_683),
    "F8-D32-V16k": (published(8, 32, 1, 16), 71_662_755),
    "F8-D32-V64k": (published(8, 32, 1, 64), 73_235_619),
    "F8-D32-V256k": (published(8, 32, 1, 256), 79_527_075),
    "F8-D32-V512k": (published(8, 32, 1, 512), 87_915_683),
    "F8-D64-V8k": (published(8, 64, 1, 8), 71_924_931),
    "F8-D64-V16k": (published(8, 64, 1, 16), 72_449_219),
    "F8-D64-V256k": (published(8, 64, 1, 256), 88_177_859),
    "F8-D64-V512k": (published(8, 64, 1, 512), 104_955_075),
    "F8-D64-G4-V256k": (published(8, 64, 4, 256), 75_594_947),
    "F8-D64-G16-V8k": (published(8, 64, 16, 8), 71_433_411),
    "F16-D16-G2-V256k": (published(16, 16, 2, 256), 75_029_523),
    "F16-D16-G4-V256k_uniform_init": (published(16, 16, 4, 256), 73_980_947),
    "F16-D16-G8-V256k": (published(16, 16, 8, 256), 73_456_659),
    "F16-D16-G8-V256k-no_l2": (published(16, 16, 8, 256, "none"), 73_456_659),
    "F16-D16-G16-V256k-CLIP": (published(16, 16, 16, 256, "clip"), 73_194_515),
    "F16-D8-G8-V256k-no_l2": (published(16, 8, 8, 256, "none"), 73_126_923),
    "F16-D64-G4-V256k": (published(16, 64, 4, 256), 77_532_227),
    "F32-D32-G16-V256k": (published(32, 32, 16, 256), 104_311_331),
    "F32-D128-G8-V256k": (published(32, 128, 8, 256), 108_890_755),
}
