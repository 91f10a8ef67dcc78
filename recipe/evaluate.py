"""Define the options of `evaluate`: how many images, of what, by whom."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from .base import ALLOW_FALLBACK, DEVICE, THREADS, require_not_empty
from .commands import DRAWS, Count, SamplingOptions, Seed
from .descriptions import Groups, Range, require_in_range, says

Executor = Literal["processes", "ray"]


class EvaluateOptions(SamplingOptions, frozen=True, kw_only=True):
    """Say which images a generator makes, what measures them, and where the work is done."""

    GROUPS: ClassVar[Groups] = {
        "Images": ("count", "labels", "seed", "batch_size", "keep_images"),
        "Sampling": (*DRAWS, "greedy"),
        "Measures": ("features", "reference", "gates"),
        "Work": ("executor", "workers", "shard_size", "threads", "device", "allow_fallback"),
    }

    count: Annotated[Count, says("Images that a generator makes.")] = 50_000
    labels: Annotated[
        tuple[str, ...], says("Classes, in turn, e.g. 3,7 or 0-9. [default: all]")
    ] = ()
    seed: Annotated[Seed, says("Seed of the draws.")] = 0
    batch_size: Annotated[int, says("Images at once.", Range(1))] = 4
    keep_images: Annotated[bool, says("Write the images beside their features.")] = True
    features: Annotated[
        str | None,
        says(
            "An ONNX graph from images to features, with outputs pool, spatial and logits; "
            "`arvg-trt network inception` makes that of FID."
        ),
    ] = None
    reference: Annotated[
        str | None, says("A .npz of the ADM evaluator, or a folder of images to compare with.")
    ] = None
    gates: Annotated[
        tuple[str, ...],
        says("Condition that the figures must hold, such as 'fid<=5.2'.", flag="gate"),
    ] = ()
    executor: Annotated[
        Executor, says("Processes of this machine, or actors of a Ray cluster.")
    ] = "processes"
    workers: Annotated[
        int | None, says("Workers at once. [default: one per processor]", Range(1))
    ] = None
    shard_size: Annotated[int, says("Images of a file, which is made as a whole.", Range(1))] = 500
    threads: Annotated[
        int, says("Threads of each worker; 0 shares the processors out.", THREADS)
    ] = 0
    device: Annotated[str, says(DEVICE)] = "auto"
    allow_fallback: Annotated[bool, says(ALLOW_FALLBACK)] = False

    def __post_init__(self) -> None:
        require_in_range(self)
        require_not_empty(self, "device", "features", "reference")
