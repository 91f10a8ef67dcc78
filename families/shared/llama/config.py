"""Define what decides the shapes of LlamaGen's transformer. Torch-free, to list models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from ....errors import ExportError
from ....runtime.spec import Defaults

HIDDEN_MULTIPLE = 256
LONGEST = 2**20  # tokens of an image: the table of the angles is made for all of them
OFFICIAL = {  # depth, width, heads of the official code's sizes
    "b": (12, 768, 12),
    "l": (24, 1024, 16),
    "xl": (36, 1280, 20),
    "xxl": (48, 1536, 24),
    "3b": (24, 3200, 32),
    "1b": (22, 2048, 32),
    "xxxl": (48, 2560, 40),
    "7b": (32, 4096, 32),
}


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Everything that decides the shapes and the arithmetic of the transformer.

    An image has ``length`` tokens, a square map. ``rope_base`` is that of the rotary angles.
    """

    depth: int
    width: int
    heads: int
    hidden: int = 0
    length: int = 576
    num_classes: int = 1000
    vocab_size: int = 16384
    rope_base: float = 10000
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.hidden == 0:
            object.__setattr__(self, "hidden", official_hidden(self.width))
        names = ("depth", "width", "heads", "hidden", "length", "num_classes", "vocab_size")
        small = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) < 1]
        small += [
            f"{name} {getattr(self, name)}"
            for name in ("rope_base", "norm_eps")
            if not getattr(self, name) > 0
        ]
        if small:
            raise ExportError(f"has {', '.join(small)}: too small", do="use another file")
        if self.width % (4 * self.heads):
            raise ExportError(
                f"has width {self.width}, not a multiple of 4 in each of {self.heads} heads",
                do="check n_head in config.json",
            )
        if self.length > LONGEST:
            raise ExportError(
                f"has images of {self.length} tokens, over {LONGEST}",
                do="check block_size in config.json",
            )
        if self.side**2 != self.length:
            raise ExportError(
                f"has images of {self.length} tokens, not a square",
                do="check block_size in config.json",
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def side(self) -> int:
        """Return the side of the token map."""
        return math.isqrt(max(self.length, 0))

    @property
    def class_tokens(self) -> int:
        """Return the first row of the classes in the table of all tokens; the last is null."""
        return self.vocab_size


def official_hidden(width: int) -> int:
    """Return 8/3 of the width, up to a multiple of 256."""
    return -(-int(8 * width / 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE


def official_heads(depth: int, width: int) -> int | None:
    """Return the heads of the official size of this depth and width; None for any other size."""
    return next((heads for d, w, heads in OFFICIAL.values() if (d, w) == (depth, width)), None)


class LlamaJson(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a `config.json` that are read, by their official names.

    The tensors tell all but the heads, the tokens of an image, the angles' base and the norms' eps.
    `sampling` is what the model generates with unless told otherwise.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "n_layer": "depth",
        "n_head": "heads",
        "dim": "width",
        "block_size": "length",
    }
    n_layer: int | None = None
    n_head: int | None = None
    dim: int | None = None
    block_size: int | None = None
    num_classes: int | None = None
    vocab_size: int | None = None
    rope_base: float | None = None
    norm_eps: float | None = None
    sampling: Defaults | None = None

    def config_values(self) -> dict[str, object]:
        """Return what the file says, by the names of the configuration."""
        names = set(self.__struct_fields__) - {"sampling"}
        fields = {self.renamed.get(k, k): getattr(self, k) for k in names}
        return {name: value for name, value in fields.items() if value is not None}
