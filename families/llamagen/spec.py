"""Define what `generator.json` says of a LlamaGen."""

from __future__ import annotations

from ...runtime.raster_spec import RasterSpec
from ...runtime.spec import AxisSizes, Defaults


class LlamagenSpec(RasterSpec, frozen=True, kw_only=True, tag_field="family", tag="llamagen"):
    """`generator.json` of a LlamaGen.

    The step takes rows of one table: the vocabulary, the classes with the null class.
    """

    defaults: Defaults

    @property
    def steps(self) -> int:
        """Steps of one batch: its tokens."""
        return self.length

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the tokens cached before a step, which takes one; the last is never fed."""
        last = self.length - 1
        return self.map_sizes | {"past": (0, last, last)}
