"""Define what every tokenizer of this lineage has: a width and its multiple per resolution."""

from __future__ import annotations


class Pyramid:
    """Add properties to a configuration with `channels` and `channels_mult`, fine to coarse."""

    __slots__ = ()
    channels: int
    channels_mult: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Return the pixels per side of a latent's cell: a factor of 2 between levels."""
        return 1 << (len(self.channels_mult) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.channels * m for m in self.channels_mult)
