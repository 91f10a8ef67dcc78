"""What decides the shapes of a PAR transformer. Torch-free: models are listed without it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from ...errors import ExportError
from ...runtime.spec import Defaults

HIDDEN_MULTIPLE = 256
LONGEST = 2**20  # tokens of an image: the table of the angles is made for all of them


@dataclass(frozen=True, slots=True)
class ParConfig:
    """Everything that decides the shapes and the arithmetic of a PAR transformer.

    An image has ``length`` tokens, a square map of sqrt(``group``) x sqrt(``group``) regions;
    ``group`` tokens, one of each region, are predicted at once. ``rope_base`` is that of the
    rotary angles.
    """

    depth: int
    width: int
    heads: int
    hidden: int = 0
    length: int = 576
    group: int = 4
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
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def side(self) -> int:
        """Of the token map."""
        return math.isqrt(max(self.length, 0))

    @property
    def special(self) -> int:
        """Tokens that, behind the last single one, begin the first group."""
        return self.group - 1

    @property
    def class_tokens(self) -> int:
        """The first row of the classes in the table of all tokens; the last is the null class."""
        return self.vocab_size

    @property
    def special_tokens(self) -> int:
        """The first row of the special tokens in the table of all tokens."""
        return self.vocab_size + self.num_classes + 1


def official_hidden(width: int) -> int:
    """8/3 of the width, up to a multiple of 256."""
    return -(-int(8 * width / 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE


SIZES = {  # depth, width, heads
    "l": (24, 1024, 16),
    "xl": (36, 1280, 20),
    "xxl": (48, 1536, 24),
    "3b": (24, 3200, 32),
}
GROUPS = (4, 16)
PUBLISHED = {
    f"{size}-{group}x": ParConfig(*numbers, group=group)
    for size, numbers in SIZES.items()
    for group in GROUPS
}
# Of the official code that were not published: GPT-B, GPT-1B, GPT-XXXL, GPT-7B.
UNPUBLISHED = ((12, 768, 12), (22, 2048, 32), (48, 2560, 40), (32, 4096, 32))
# The guidance of the published evaluations; for others the official sampler's own.
CFG = {"xl-4x": 1.5, "xxl-4x": 1.435, "3b-4x": 1.345, "3b-16x": 1.5}
DEFAULT_CFG = 1.5


def sampling_of(config: ParConfig) -> Defaults:
    """The published one of this size, else the official sampler's."""
    name = next((name for name, known in PUBLISHED.items() if known == config), "")
    return Defaults(cfg=CFG.get(name, DEFAULT_CFG), top_k=0, top_p=1.0)


def official_heads(depth: int, width: int) -> int | None:
    """The heads of the official size of this depth and width; None for any other size."""
    known = (*SIZES.values(), *UNPUBLISHED)
    return next((heads for d, w, heads in known if (d, w) == (depth, width)), None)


def published_length(depth: int, width: int, heads: int, group: int) -> int | None:
    """The tokens of an image of the published model of this size; None for any other."""
    size = (depth, width, heads)
    fits = size in SIZES.values() and group in GROUPS
    return next(iter(PUBLISHED.values())).length if fits else None


class ParJson(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a `config.json` that are read, by their official names.

    The tensors tell all but the heads, the tokens of an image, the angles' base and the norms' eps.
    `sampling` is what the model generates with unless told otherwise.
    """

    n_layer: int | None = None
    n_head: int | None = None
    dim: int | None = None
    block_size: int | None = None
    ar_token_num: int | None = None
    num_classes: int | None = None
    vocab_size: int | None = None
    rope_base: float | None = None
    norm_eps: float | None = None
    sampling: Defaults | None = None

    def config_values(self) -> dict[str, object]:
        """What the file says, by the names of `ParConfig`."""
        renamed = {
            "n_layer": "depth",
            "n_head": "heads",
            "dim": "width",
            "block_size": "length",
            "ar_token_num": "group",
        }
        names = set(self.__struct_fields__) - {"sampling"}
        fields = {renamed.get(k, k): getattr(self, k) for k in names}
        return {name: value for name, value in fields.items() if value is not None}
