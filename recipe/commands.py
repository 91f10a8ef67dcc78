"""Define options of commands that no recipe has: what to search, and what to generate."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from .base import ALLOW_FALLBACK, DEVICE, Options, require_not_empty
from .descriptions import Groups, Range, require_in_range, says

Grid = Literal["uniform", "log", "block"]
MOST_IMAGES = 10**6
Count = Annotated[int, msgspec.Meta(ge=1, le=MOST_IMAGES)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Threads = Annotated[int, msgspec.Meta(ge=0, le=1024)]

# Names of `Sampling` that a call may change.
DRAWS = ("cfg", "top_k", "top_p", "temperature", "cfg_power", "iterations", "diffusion_steps")


class SearchOptions(Options, frozen=True, kw_only=True):
    """Say which formats a search tries, and what its plan may cost."""

    GROUPS: ClassVar[Groups] = {
        "Search": ("budgets", "samples", "bits", "grids", "all_sites"),
    }

    budgets: Annotated[
        tuple[str, ...],
        says(
            "'avg_bits<=5' or 'size<=20MB' of packed weights; all that are given hold.",
            flag="budget",
        ),
    ] = ()
    samples: Annotated[int, says("Calibration samples of each measurement.", Range(1))] = 4
    bits: Annotated[tuple[int, ...], says("Widths to try beside float, of 2 to 8 bits.")] = (
        2,
        3,
        4,
        5,
        6,
        7,
        8,
    )
    grids: Annotated[
        tuple[Grid, ...],
        says(
            "Grids to try where only weights are rounded; block is INT4 in blocks of input "
            "channels, for linears.",
            flag="grid",
        ),
    ] = ("uniform", "log", "block")
    all_sites: Annotated[
        bool, says("Also search sites that the method leaves out; what is excluded stays out.")
    ] = False

    def __post_init__(self) -> None:
        require_in_range(self)
        if not self.bits or not self.grids or any(not 2 <= b <= 8 for b in self.bits):
            raise ValueError("a search needs bits from 2 to 8 and a grid")
        if set(self.grids) == {"block"}:
            raise ValueError("convolutions have no blocks: give uniform or log beside them")


class DiagnoseOptions(Options, frozen=True, kw_only=True):
    """Say which sites a diagnosis measures, and what it proposes to raise."""

    GROUPS: ClassVar[Groups] = {
        "Sites": ("sites", "count", "to", "order", "target"),
        "Work": ("requantize",),
    }

    sites: Annotated[
        tuple[str, ...],
        says("Measure alone only sites that match this pattern, e.g. 'decoder.*'.", flag="site"),
    ] = ()
    count: Annotated[
        int,
        says("How many sites to raise, the first of the ranking.", Range(0, 10**4), flag="raise"),
    ] = 5
    to: Annotated[
        Literal["high", "8bit"],
        says("What to raise them to: high precision, or 8 bits where they have fewer.", flag="to"),
    ] = "high"
    order: Annotated[
        Literal["gain", "gain_per_kib", "gain_per_us"],
        says(
            "Rank by the error that goes, or by that for each KiB of weights or microsecond more.",
            flag="rank",
        ),
    ] = "gain"
    target: Annotated[
        str | None,
        says(
            "Also predict what an image takes longer, on a GPU such as rtx4090 or a file that "
            "`arvg-trt probe` wrote."
        ),
    ] = None
    requantize: Annotated[
        bool, says("Also quantize with the written plan, and measure what it reaches.")
    ] = False

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.order == "gain_per_us" and self.target is None:
            raise ValueError("to rank by microseconds it needs a --target")


class SamplingOptions(Options, frozen=True, kw_only=True):
    """Say how a generator draws; None takes the model's own sampling."""

    cfg: Annotated[float | None, says("Guidance strength, 0 for none. [default: the model's]")] = (
        None
    )
    top_k: Annotated[
        int | None, says("Draw among so many tokens, 0 for all. [default: the model's]")
    ] = None
    top_p: Annotated[
        float | None,
        says("Draw among the tokens that have this probability together. [default: the model's]"),
    ] = None
    temperature: Annotated[
        float | None, says("Divide logits by this, above 0. [default: the model's]")
    ] = None
    cfg_power: Annotated[
        float | None, says("How late guidance sets in. [default: the model's]")
    ] = None
    iterations: Annotated[
        int | None, says("Passes over an image (MAR). [default: the model's]")
    ] = None
    diffusion_steps: Annotated[
        int | None, says("Steps of each token's diffusion (MAR). [default: the model's]")
    ] = None
    greedy: Annotated[
        bool, says("Take the arg-max instead of draws (MAR: add no noise to a token on its way).")
    ] = False


class GenerateOptions(SamplingOptions, frozen=True, kw_only=True):
    """Say what a generator makes, and how it draws; None takes the model's own sampling."""

    GROUPS: ClassVar[Groups] = {
        "Images": ("labels", "count", "seed"),
        "Sampling": (*DRAWS, "greedy"),
        "Work": ("device", "allow_fallback", "batch_size", "threads"),
    }

    labels: Annotated[tuple[str, ...], says("Classes, e.g. 3,7 or 0-9.")] = ()
    count: Annotated[Count, says("Images of each label.")] = 1
    seed: Annotated[Seed, says("Seed of the draws.")] = 0
    batch_size: Annotated[Annotated[int, msgspec.Meta(ge=1)], says("Images at once.")] = 4
    threads: Annotated[Threads, says("Threads of ONNX Runtime, 0 for all.")] = 0
    device: Annotated[str, says(DEVICE)] = "auto"
    allow_fallback: Annotated[bool, says(ALLOW_FALLBACK)] = False

    def __post_init__(self) -> None:
        require_in_range(self)
        require_not_empty(self, "device")
