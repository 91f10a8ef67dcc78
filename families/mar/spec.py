"""Define what `generator.json` says of a MAR."""

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
    """Hold MAR's default sampling.

    Guidance rises with the share of known tokens to the power `cfg_power`: 1 is the official linear
    schedule, 0 the constant one. In each of `iterations` passes the next tokens go through
    `diffusion_steps`. Tokens are continuous, so top_k and top_p take all.
    """

    top_k: int = 0
    top_p: float = 1.0
    cfg_power: float = 1.0
    iterations: Count
    diffusion_steps: Annotated[int, msgspec.Meta(ge=1, le=TIMES)] = 100


class MarSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="family", tag="mar"):
    """Describe a MAR in `generator.json`: what the schedule needs to know beside the graphs.

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
        """Return the number of tokens of an image."""
        return self.side * self.side

    @property
    def vocab_size(self) -> int:
        """Return 0: its tokens are continuous."""
        return 0

    @property
    def static_batch(self) -> None:
        """Return None: its graphs take any number of images."""
        return None

    @property
    def steps(self) -> int:
        """Return the passes of one batch, unless the sampling says otherwise."""
        return self.defaults.iterations

    @property
    def order(self) -> NDArray[np.int64]:
        """Return the raster order [length] of a latent; each image is generated in another."""
        return np.arange(self.length)

    @property
    def calibrated_graphs(self) -> tuple[str, ...]:
        return GRAPHS

    @property
    def recording(self) -> MarRecording:
        """Return the recording along trajectories: no graph has all positions."""
        from .trajectory import MarRecording

        return MarRecording(self)

    def axis_sizes(self, graph: str, max_batch: int) -> AxisSizes:
        """Return the known tokens of a pass, and those that one run of the denoiser takes."""
        known = self.length - 1
        drawn = 2 * max_batch * max(1, self.length // self.steps)
        most = 2 * max_batch * self.length
        side = {axis: (self.side,) * 3 for axis in ("h", "w")}
        return side | {"n": (0, known, known), "m": (1, drawn, most)}
