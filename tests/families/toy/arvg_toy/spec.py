"""Define what `generator.json` says of a toy."""

from __future__ import annotations

from arvg_trt.runtime.raster_spec import RasterSpec
from arvg_trt.runtime.spec import AxisSizes, Defaults


class ToySpec(RasterSpec, frozen=True, kw_only=True, tag_field="family", tag="toy"):
    """A class, then all tokens in raster order, each a step."""

    defaults: Defaults

    @property
    def steps(self) -> int:
        return self.length

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        last = self.length - 1
        return self.map_sizes | {"n": (1, 1, 1), "past": (0, last, last)}
