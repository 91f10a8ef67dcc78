"""Define what a recipe says, as frozen structs; values that do not go together are errors."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from .base import (
    COUNT,
    ROUNDS,
    SEED,
    SIDE,
    THREADS,
    Options,
    check_name,
    require_not_empty,
)
from .descriptions import Groups, require_in_range, says
from .quantize import QuantizeOptions

MAX_MEMORY = 2 * 2**30  # bytes of Hessians at a time
Backend = Literal["onnxruntime", "tensorrt_rtx", "tensorrt"]


class CalibrateOptions(Options, frozen=True, kw_only=True):
    """Say what a model is calibrated on: images, arrays, or what a generator makes itself."""

    GROUPS: ClassVar[Groups] = {
        "Samples": (
            "images",
            "feeds",
            "labels",
            "samples",
            "batch_size",
            "seed",
            "size",
            "synthetic",
            "samples_from",
            "value_range",
        ),
        "Shards": ("shard",),
        "Distances (DGC)": ("dgc", "candidates", "dgc_select"),
    }

    images: Annotated[str | None, says("Folder of images, or skimage:NAME,NAME.")] = None
    feeds: Annotated[
        str | None, says("A .npz of arrays by input name, for graphs of your own.")
    ] = None
    labels: Annotated[
        str | None,
        says("A generator's classes, in turn, e.g. 0-9,207. Without it, drawn evenly of all."),
    ] = None
    samples: Annotated[
        int, says("Number of crops, or of images that a generator makes.", COUNT)
    ] = 32
    batch_size: Annotated[
        int,
        says(
            "Samples in flight; memory grows with this, not with the samples.",
            COUNT,
        ),
    ] = 1
    seed: Annotated[int, says("Seed of the crops, or of the images.", SEED)] = 0
    size: Annotated[int, says("Side of the square crops.", SIDE)] = 256
    synthetic: Annotated[bool, says("Calibrate on uniform noise; every report says so.")] = False
    shard: Annotated[str | None, says("Make part K of N of the samples (K/N), to be merged.")] = (
        None
    )
    samples_from: Annotated[
        str | None, says("Use samples that were saved, all of them: a workspace or a folder.")
    ] = None
    value_range: Annotated[
        tuple[float, float] | None,
        says("Range that the float images of feeds must lie in. Without it, -16 to 16."),
    ] = None
    dgc: Annotated[bool, says("Choose a generator's rows by distance (DGC).")] = False
    candidates: Annotated[
        int | None,
        says("Images that DGC chooses from. Without it, twice the samples.", COUNT),
    ] = None
    dgc_select: Annotated[
        Literal["ratio", "distance"],
        says("Keep as many conditional rows as are far, the first ones, or keep the far ones."),
    ] = "ratio"

    def __post_init__(self) -> None:
        require_in_range(self)
        require_not_empty(self, "images", "feeds", "labels", "samples_from")
        if self.samples_from is not None:
            others = [n for n in ("images", "feeds", "labels", "synthetic") if getattr(self, n)]
            if others:
                raise ValueError(f"samples_from and {others[0]} exclude each other")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"value_range {list(self.value_range)} is empty")
        if self.candidates is not None and not self.dgc:
            raise ValueError("candidates are what dgc chooses from: set dgc")
        if self.dgc and self.shard is not None:
            raise ValueError(
                "dgc chooses among all candidates: make shards without it, merge them, and choose "
                "with samples_from"
            )
        if self.dgc and self.pool < self.samples:
            raise ValueError(f"{self.samples} samples of {self.pool} candidates leave no choice")
        if self.shard is not None:
            _, n = self.part
            if n > self.samples:
                raise ValueError(f"{self.samples} samples cannot be cut into {n} shards")
        if self.synthetic and (self.images is not None or self.feeds is not None):
            given = "images" if self.images is not None else "feeds"
            raise ValueError(f"synthetic noise and {given} exclude each other")

    @property
    def pool(self) -> int:
        """Return how many images to make: the samples, or the candidates for them."""
        if not self.dgc:
            return self.samples
        return 2 * self.samples if self.candidates is None else self.candidates

    @property
    def part(self) -> tuple[int, int]:
        """Return (K, N) of the shard, counted from 1; (1, 1) is all.

        Raises:
            ValueError: it is not written as K/N with 1 <= K <= N.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", self.shard or "1/1")
        k, n = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= k <= n:
            raise ValueError(f"shard {self.shard!r} is not K/N, part K of N from 1/N to N/N")
        return k, n


class BuildOptions(Options, frozen=True, kw_only=True):
    """Say which engines of one back end are built."""

    GROUPS: ClassVar[Groups] = {
        "Engines": ("backend", "fp16"),
        "TensorRT": ("targets", "half", "image_size", "max_batch"),
    }

    backend: Annotated[Backend, says("What runs the engines.")] = "onnxruntime"
    targets: Annotated[
        tuple[str, ...],
        says(
            "GPU or compute capability that TensorRT engines are for, such as rtx4090 or sm89.",
            flag="target",
        ),
    ] = ()
    fp16: Annotated[bool, says("Also build the engines of the unquantized graphs.")] = False
    half: Annotated[
        Literal["float16", "bfloat16"],
        says("Type of what TensorRT does not quantize; bfloat16 (sm80 on) has float32's range."),
    ] = "float16"
    image_size: Annotated[int, says("Side of the images that a TensorRT engine takes.", SIDE)] = 256
    max_batch: Annotated[
        int,
        says(
            "Largest batch that a TensorRT engine takes; above 1 its bytes vary by build.",
            COUNT,
        ),
    ] = 1

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.backend == "tensorrt_rtx" and not self.targets:
            raise ValueError('tensorrt_rtx compiles for named GPUs: targets = ["sm86", "sm89"]')
        if self.backend == "onnxruntime" and self.targets:
            raise ValueError("onnxruntime takes no targets")
        if self.backend == "onnxruntime" and self.half != "float16":
            raise ValueError(f"half = {self.half} is for TensorRT: onnxruntime computes in float32")


class ValidateOptions(Options, frozen=True, kw_only=True):
    """Say what a quantization is compared on, how it is timed, and what it must reach."""

    GROUPS: ClassVar[Groups] = {
        "Held-out samples": ("images", "feeds", "labels", "samples", "seed", "batch_size", "size"),
        "Measures": ("features", "gates", "skip_engine"),
        "Timing": ("rounds", "warmup", "threads"),
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
            "A generator's classes, in turn, e.g. 0-9,207; with images one for each, or one "
            "for all. Without it, drawn of all, those first that calibration has not seen."
        ),
    ] = None
    samples: Annotated[int, says("Images that a generator makes.", COUNT)] = 32
    seed: Annotated[
        int,
        says("Seed of these images, which calibration must not have used.", SEED),
    ] = 1000
    batch_size: Annotated[int, says("Images in flight.", COUNT)] = 4
    features: Annotated[
        str | None, says("An ONNX graph from images to features, for their Frechet distance.")
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
    threads: Annotated[int, says("Threads of ONNX Runtime; 0 for all.", THREADS)] = 0
    skip_engine: Annotated[bool, says("Measure the Q/DQ graphs alone, and no engine.")] = False

    def __post_init__(self) -> None:
        require_in_range(self)
        require_not_empty(self, "images", "feeds", "labels", "features")


class Recipe(Options, frozen=True, kw_only=True):
    """Hold everything that `arvg-trt run` needs."""

    model: Annotated[
        str, says("Name of a model that `arvg-trt models` lists, or onnx: your own graphs.")
    ]
    workspace: Annotated[str, says("Folder that the stages write to.")]
    name: Annotated[str, says("Name of this quantization; a workspace holds many.")]
    checkpoint: Annotated[
        str | None, says("File, folder or Hugging Face id. Without it, the weights that ship.")
    ] = None
    weights: Annotated[
        Literal["ema", "model"] | None,
        says(
            "Averaged or last weights of a trainer's snapshot. Without it, as officially evaluated."
        ),
    ] = None
    graphs: Annotated[
        tuple[str, ...],
        says("ONNX files of the model onnx, in the order that they run.", flag="graph"),
    ] = ()
    calibrate: Annotated[CalibrateOptions, says("What the model is calibrated on.")] = (
        CalibrateOptions()
    )
    quantize: Annotated[QuantizeOptions, says("Which formats its sites get.")] = QuantizeOptions()
    build: Annotated[tuple[BuildOptions, ...], says("Engines, a table for each back end.")] = (
        BuildOptions(),
    )
    validate: Annotated[ValidateOptions, says("What the result is measured on.")] = (
        ValidateOptions()
    )
    schema: Annotated[Literal["arvg-trt/recipe/v1"], says("Version of this form.")] = (
        "arvg-trt/recipe/v1"
    )

    def __post_init__(self) -> None:
        check_name(self.name)
        require_not_empty(self, "model", "workspace", "checkpoint", "graphs")
