"""Define what the export of a checkpoint leaves in its manifest; reading it needs no torch."""

from __future__ import annotations

import msgspec

from ..workspace.facts import TokenizerFacts


class Difference(msgspec.Struct, frozen=True):
    """Hold how a tensor of ONNX Runtime differs from PyTorch's, relative to the latter's RMS.

    It names `graph` and tensor; for a step also the numbers of its tokens and of cached ones.
    """

    graph: str
    tensor: str
    max: float
    mean: float
    tokens: int | None = None
    past: int | None = None


class TokenParity(msgspec.Struct, frozen=True):
    """Count tokens, those that differ from PyTorch's, and those of them that may.

    A token may differ where its vector lies within float error of the boundary between two codes,
    or, in VAR, behind a scale of its image where such a token does.
    """

    tokens: int
    differ: int
    at_boundary: int


class Parity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Compare graphs with PyTorch: the encoder's tokens, if it has some, and all outputs."""

    encoder: TokenParity | None = None
    graphs: tuple[Difference, ...]


class PartParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Count the parameters of a generator's parts."""

    transformer: int
    tokenizer: int

    @property
    def total(self) -> int:
        return self.transformer + self.tokenizer


class CheckpointFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Results of the export: those of a generator have ``parameters_of``, else ``tokenizer``.

    ``parity_images`` are the names of the images that the graphs were compared on.
    """

    parameters: int
    parameters_of: PartParameters | None = None
    tokenizer: TokenizerFacts | None = None
    parity: Parity
    parity_images: tuple[str, ...]
