"""What `generator.json` says of a MAR."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...runtime.spec import TIMES, AxisSizes, Count, Defaults, Pixels, Side

if TYPE_CHECKING:
    from .trajectory import MarRecording

PASS, DENOISE = GRAPHS = ("pass", "denoise")


class MarDefaults(Defaults, frozen=True, kw_only=True):
    """Guidance that rises with the tokens known to the power `cfg_power`: 1 is the official
    linear schedule, 0 the constant one. `iterations` passes, in each of which the next tokens go
    through `diffusion_steps`. Its tokens are continuous: all of them, in the terms of a vocabulary.
    """

    top_k: int = 0
    top_p: float = 1.0
    cfg_power: float = 1.0
    iterations: Count
    diffusion_steps: Annotated[int, msgspec.Meta(ge=1, le=TIMES)] = 100


class MarSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="family", tag="mar"):
    """`generator.json` of a MAR: what the schedule needs to know beside the graphs.

    An image is a map of `side` * `side` tokens of `latent_channels` numbers. The null class is
    `num_classes`.
    """

    schema: Literal["arvg-trt/generator/v1"] = "arvg-trt/generator/v1"
    side: Side
    latent_channels: Count
    num_classes: Count
    image_size: Pixels
    defaults: MarDefaults

    def __post_init__(self) -> None:
        if self.image_size % self.side:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.side} tokens")
        if self.defaults.iterations > self.length:
            raise ValueError(f"{self.defaults.iterations} iterations over {self.length} tokens")

    @property
    def length(self) -> int:
        """Tokens of an image."""
        return self.side * self.side

    @property
    def vocab_size(self) -> int:
        """Its tokens are continuous."""
        return 0

    @property
    def static_batch(self) -> None:
        """Its graphs take any number of images."""
        return None

    @property
    def steps(self) -> int:
        """Passes of one batch, unless the sampling says otherwise."""
        return self.defaults.iterations

    @property
    def order(self) -> NDArray[np.int64]:
        """A latent has its tokens in raster order; every image is generated in another one."""
        return np.arange(self.length)

    @property
    def calibrated_graphs(self) -> tuple[str, ...]:
        return GRAPHS

    @property
    def recording(self) -> MarRecording:
        """No graph has all positions: runs are recorded along trajectories."""
        from .trajectory import MarRecording

        return MarRecording(self)

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the known tokens of a pass, and those that one run of the denoiser takes."""
        known = self.length - 1
        drawn = 2 * max_batch * max(1, self.length // self.steps)
        most = 2 * max_batch * self.length
        side = {axis: (self.side,) * 3 for axis in ("h", "w")}
        return side | {"n": (0, known, known), "m": (1, drawn, most)}
