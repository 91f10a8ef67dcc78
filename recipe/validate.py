"""Define the options of `validate`: held-out samples, timing, gates."""

from __future__ import annotations

from typing import Annotated, ClassVar

from .base import (
    ALLOW_FALLBACK,
    COUNT,
    DEFAULT_SAMPLES,
    DEVICE,
    ROUNDS,
    SEED,
    SIDE,
    THREADS,
    Options,
    require_not_empty,
)
from .descriptions import Groups, require_in_range, says


class ValidateOptions(Options, frozen=True, kw_only=True):
    """Say what a quantization is compared on, how it is timed, and what it must reach."""

    GROUPS: ClassVar[Groups] = {
        "Held-out samples": ("images", "feeds", "labels", "samples", "seed", "batch_size", "size"),
        "Measures": ("features", "lpips", "dists", "gates", "skip_engine", "second_opinion"),
        "Timing": ("rounds", "warmup", "starts", "threads"),
        "Device": ("device", "allow_fallback"),
    }

    images: Annotated[
        str | None,
        says(
            "Folder of held-out images, or skimage:NAME,NAME. A generator makes its own without it."
        ),
    ] = None
    feeds: Annotated[str | None, says("A .npz of held-out arrays, for graphs of your own.")] = None
    labels: Annotated[
        str | None,
        says(
            "A generator's classes, in turn, e.g. 0-4,7; with images one for each, or one "
            "for all. Without it, drawn of all, those first that calibration has not seen."
        ),
    ] = None
    samples: Annotated[
        int | None,
        says(
            "How many samples to take: the first of the images or arrays, or so many images that a "
            f"generator makes. Without it, all that are given, or {DEFAULT_SAMPLES} made.",
            COUNT,
        ),
    ] = None
    seed: Annotated[
        int,
        says("Seed of these images, which calibration must not have used.", SEED),
    ] = 1000
    batch_size: Annotated[int, says("Images in flight.", COUNT)] = 4
    features: Annotated[
        str | None,
        says(
            "An ONNX graph from images to features, for their Frechet distance; a tokenizer's is "
            "rFID."
        ),
    ] = None
    lpips: Annotated[
        str | None, says("An ONNX graph from two images to their LPIPS; see `arvg-trt network`.")
    ] = None
    dists: Annotated[
        str | None, says("An ONNX graph from two images to their DISTS; see `arvg-trt network`.")
    ] = None
    size: Annotated[int, says("Side of the centre crops.", SIDE)] = 256
    gates: Annotated[
        tuple[str, ...],
        says("Condition that the report must hold, such as 'psnr_drop<=0.5'.", flag="gate"),
    ] = ()
    rounds: Annotated[
        int, says("Timed rounds, all candidates interleaved; 0 for none.", ROUNDS)
    ] = 20
    warmup: Annotated[int, says("Rounds before those that are timed.", ROUNDS)] = 3
    starts: Annotated[
        int,
        says(
            "Fresh processes that open each candidate, for its start and memory; 0, or no rounds, "
            "for none.",
            ROUNDS,
        ),
    ] = 3
    threads: Annotated[int, says("Threads of ONNX Runtime; 0 for all.", THREADS)] = 0
    device: Annotated[str, says(f"{DEVICE} The engine runs there, all else on the CPU.")] = "auto"
    allow_fallback: Annotated[bool, says(ALLOW_FALLBACK)] = False
    skip_engine: Annotated[bool, says("Measure the Q/DQ graphs alone, and no engine.")] = False

    second_opinion: Annotated[
        bool,
        says("Also run held-out feeds by Polygraphy and PyTorch, and say whether they agree."),
    ] = False

    def __post_init__(self) -> None:
        require_in_range(self)
        require_not_empty(self, "images", "feeds", "labels", "features", "lpips", "dists", "device")

    @property
    def generated(self) -> int:
        """Return how many images a generator makes."""
        return DEFAULT_SAMPLES if self.samples is None else self.samples
