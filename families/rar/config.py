"""Define what decides the shapes of a RAR transformer. Torch-free: models are listed without it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from ...errors import ExportError
from .spec import RarDefaults

# Rows that the official position and step tables have beyond the tokens of an image.
SPARE_POSITIONS = 1024
SPARE_STEPS = 100


@dataclass(frozen=True, slots=True)
class RarConfig:
    """Everything that decides the shapes and the arithmetic of a RAR transformer.

    An image has ``length`` tokens in raster order, a square. The embedding's rows are the image
    tokens, one mask token of the training, the classes and the null class.
    """

    depth: int
    width: int
    heads: int = 16
    hidden: int = 0
    length: int = 256
    num_classes: int = 1000
    vocab_size: int = 1024
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.hidden == 0:
            object.__setattr__(self, "hidden", 4 * self.width)
        names = ("depth", "width", "heads", "hidden", "length", "num_classes", "vocab_size")
        small = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) < 1]
        if small:
            raise ExportError(f"has {', '.join(small)} below 1", do="use another file")
        if self.width % self.heads:
            raise ExportError(
                f"has width {self.width}, not a multiple of {self.heads} heads",
                do="use the checkpoint of a RAR",
            )
        if self.side**2 != self.length:
            raise ExportError(
                f"has images of {self.length} tokens, not a square", do="use another file"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def side(self) -> int:
        """Return the side of the token map."""
        return math.isqrt(self.length)

    @property
    def positions(self) -> int:
        """Return the length of the sequence: the cls token, the class, all tokens but the last."""
        return self.length + 1

    @property
    def class_tokens(self) -> int:
        """The embedding's row of class 0; behind the last class is the null class."""
        return self.vocab_size + 1

    @property
    def rows(self) -> int:
        """Return the number of rows of the embedding."""
        return self.class_tokens + self.num_classes + 1


def published_sampling(cfg: float, cfg_power: float, temperature: float = 1.0) -> RarDefaults:
    """Return the sampling of a published evaluation, which draws from all tokens."""
    return RarDefaults(cfg=cfg, cfg_power=cfg_power, temperature=temperature, top_k=0, top_p=1.0)


# The official demonstration's: constant guidance, for sizes that were not published.
DEMO = published_sampling(4.0, 0.0)
PUBLISHED = {
    "b": (RarConfig(24, 768), published_sampling(16.0, 2.75)),
    "l": (RarConfig(24, 1024), published_sampling(15.5, 2.5, 1.02)),
    "xl": (RarConfig(32, 1280), published_sampling(6.9, 1.5, 1.02)),
    "xxl": (RarConfig(40, 1408, hidden=6144), published_sampling(8.0, 1.2, 1.02)),
}


def sampling_of(config: RarConfig) -> RarDefaults:
    """The published one of this size, else that of the demonstration."""
    return next((sampling for known, sampling in PUBLISHED.values() if known == config), DEMO)


class RarJson(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a `config.json` beside the weights that are read; the tensors tell the rest.

    `sampling` is what the model generates with unless told otherwise.
    """

    sampling: RarDefaults | None = None
