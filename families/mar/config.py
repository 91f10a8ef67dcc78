"""Define what decides the shapes of a MAR, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from ...errors import ExportError
from .spec import MarDefaults

# Scale of the latents that the published sizes were trained on: it makes their deviation 1.
LATENT_SCALE = 0.2325


@dataclass(frozen=True, slots=True)
class MarConfig:
    """Hold everything that decides the shapes and the arithmetic of a MAR.

    An image has ``length`` tokens of ``latent_channels`` numbers, a square in raster order. The
    encoder sees ``buffer`` rows of the class before the known tokens, the decoder in addition a
    mask token for each of the others. The encoder has blocks of ``width`` with ``heads`` and
    ``hidden``, the decoder those of ``decoder_width`` and so on, where 0 stands for the encoder's.
    The denoiser has ``head_depth`` blocks of ``head_width`` and takes the time as ``frequencies``
    sines and cosines. Tokens are latents of the autoencoder times ``latent_scale``.
    """

    encoder_depth: int
    decoder_depth: int
    width: int
    heads: int
    head_depth: int
    head_width: int
    hidden: int = 0
    length: int = 256
    buffer: int = 64
    latent_channels: int = 16
    num_classes: int = 1000
    frequencies: int = 256
    latent_scale: float = LATENT_SCALE
    norm_eps: float = 1e-6
    decoder_width: int = 0
    decoder_heads: int = 0
    decoder_hidden: int = 0

    def __post_init__(self) -> None:
        alike = self.decoder_width in (0, self.width)
        defaults = {
            "hidden": 4 * self.width,
            "decoder_width": self.width,
            "decoder_heads": self.heads,
        }
        for name, value in defaults.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)
        if self.decoder_hidden == 0:
            hidden = self.hidden if alike else 4 * self.decoder_width
            object.__setattr__(self, "decoder_hidden", hidden)
        counts = {n: getattr(self, n) for n in self.__slots__ if n not in FRACTIONS}
        small = [f"{name} {value}" for name, value in counts.items() if value < 1]
        if small:
            raise ExportError(f"has {', '.join(small)} below 1", do="use another file")
        for half, width, heads in (
            ("encoder", self.width, self.heads),
            ("decoder", self.decoder_width, self.decoder_heads),
        ):
            if width % heads:
                raise ExportError(
                    f"has {half} width {width}, not a multiple of {heads} heads",
                    do=f"correct {half}_num_heads in config.json",
                )
        if self.side**2 != self.length:
            raise ExportError(
                f"has images of {self.length} tokens, not a square", do="use another file"
            )
        if self.frequencies % 2:
            raise ExportError(
                f"has {self.frequencies} sines and cosines of the time, not a pair of each",
                do="use another file",
            )
        if not all(0 < getattr(self, name) < math.inf for name in FRACTIONS):
            raise ExportError(
                f"has latent_scale {self.latent_scale} and norm_eps {self.norm_eps}",
                do="say numbers above 0 in config.json",
            )

    @property
    def side(self) -> int:
        """Return the side of the token map."""
        return math.isqrt(self.length)


FRACTIONS = ("latent_scale", "norm_eps")


class MarJson(msgspec.Struct, frozen=True, kw_only=True):
    """Read the keys of a `config.json` by their official names.

    The tensors tell all but the heads, the scale of the latents and the norms' eps. `num_heads` is
    that of encoder and decoder where they are alike. `sampling` is what the model generates with
    unless told otherwise.
    """

    num_heads: int | None = None
    encoder_num_heads: int | None = None
    decoder_num_heads: int | None = None
    encoder_embed_dim: int | None = None
    decoder_embed_dim: int | None = None
    encoder_depth: int | None = None
    decoder_depth: int | None = None
    buffer_size: int | None = None
    patch_size: int | None = None
    diffloss_d: int | None = None
    diffloss_w: int | None = None
    latent_scale: float | None = None
    norm_eps: float | None = None
    sampling: MarDefaults | None = None

    def config_values(self) -> dict[str, object]:
        """Return what the file says, by the names of `MarConfig`."""
        encoder_heads, decoder_heads = self.encoder_num_heads, self.decoder_num_heads
        fields = {
            "heads": self.num_heads if encoder_heads is None else encoder_heads,
            "decoder_heads": self.num_heads if decoder_heads is None else decoder_heads,
            "width": self.encoder_embed_dim,
            "decoder_width": self.decoder_embed_dim,
            "encoder_depth": self.encoder_depth,
            "decoder_depth": self.decoder_depth,
            "buffer": self.buffer_size,
            "head_depth": self.diffloss_d,
            "head_width": self.diffloss_w,
            "latent_scale": self.latent_scale,
            "norm_eps": self.norm_eps,
        }
        return {name: value for name, value in fields.items() if value is not None}


PUBLISHED = {
    "b": (MarConfig(12, 12, 768, 12, 6, 1024), 2.9),
    "l": (MarConfig(16, 16, 1024, 16, 8, 1280), 3.0),
    "h": (MarConfig(20, 20, 1280, 16, 12, 1536), 3.2),
}
# The official script's own, for sizes that were not published.
ITERATIONS, CFG = 64, 3.0


def published_heads(depth: int, width: int) -> int | None:
    """Return the heads of the published encoder or decoder of this size; None for others."""
    known = {(c.encoder_depth, c.width): c.heads for c, _ in PUBLISHED.values()}
    return known.get((depth, width))


def sampling_of(config: MarConfig) -> MarDefaults:
    """Return the sampling of this size's published evaluation: a token a step, else fewer."""
    for known, cfg in PUBLISHED.values():
        if known == config:
            return MarDefaults(cfg=cfg, iterations=config.length)
    return MarDefaults(cfg=CFG, iterations=min(ITERATIONS, config.length))
