"""Define the options of `build`: the engines of one back end."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from ..workspace.facts import CPU_BACKENDS
from .base import COUNT, SIDE, Options
from .descriptions import Groups, Range, require_in_range, says

FACTOR = Range(1, 100)
Backend = Literal["onnxruntime", "openvino", "cpu", "tensorrt_rtx", "tensorrt"]


class BuildOptions(Options, frozen=True, kw_only=True):
    """Say which engines of one back end are built."""

    GROUPS: ClassVar[Groups] = {
        "Engines": ("backend", "fp16", "keep_if_faster"),
        "TensorRT": (
            *("targets", "half", "image_size", "max_batch"),
            *("allow_unproved", "timing_cache"),
        ),
    }

    backend: Annotated[
        Backend,
        says("What runs the engines; cpu is the faster of onnxruntime and openvino here."),
    ] = "onnxruntime"
    targets: Annotated[
        tuple[str, ...],
        says(
            "GPU or compute capability that TensorRT engines are for, such as rtx4090 or sm89.",
            flag="target",
        ),
    ] = ()
    fp16: Annotated[bool, says("Also build the engines of the unquantized graphs.")] = False
    keep_if_faster: Annotated[
        float | None,
        says(
            "Round the inputs of those sites alone that are more than so many times as fast with "
            "it as without, 1.02 say: measured for onnxruntime, predicted for TensorRT's targets.",
            FACTOR,
        ),
    ] = None
    half: Annotated[
        Literal["float16", "bfloat16"],
        says(
            "Type of what TensorRT does not quantize; bfloat16 (sm80 on) has float32's range. "
            "OpenVINO computes in float32, or in bfloat16 if asked."
        ),
    ] = "float16"
    image_size: Annotated[int, says("Side of the images that a TensorRT engine takes.", SIDE)] = 256
    max_batch: Annotated[
        int,
        says(
            "Largest batch that a TensorRT engine takes; above 1 its bytes vary by build.",
            COUNT,
        ),
    ] = 1

    allow_unproved: Annotated[
        bool,
        says("Keep a TensorRT engine though a site in it is not what was planned."),
    ] = False
    timing_cache: Annotated[
        Literal["update", "read-only", "strict", "off"],
        says("Reuse of kernel timings of earlier TensorRT builds; TensorRT for RTX times nothing."),
    ] = "update"

    def __post_init__(self) -> None:
        require_in_range(self)
        if self.keep_if_faster is not None and self.backend in ("openvino", "cpu"):
            raise ValueError(
                f"keep_if_faster times sites with ONNX Runtime, and {self.backend} runs them "
                'otherwise: leave it out, or take backend = "onnxruntime"'
            )
        if self.backend == "tensorrt_rtx" and not self.targets:
            raise ValueError(
                "tensorrt_rtx compiles for named GPUs: give --target rtx4090 (in a recipe: "
                'targets = ["rtx4090"])'
            )
        if self.on_cpu and self.targets:
            raise ValueError(
                f"{self.backend} takes no targets: it runs on the CPU (engines for a GPU: backend "
                "tensorrt_rtx)"
            )
        if self.backend in ("onnxruntime", "cpu") and self.half != "float16":
            raise ValueError(
                f"half = {self.half} is for TensorRT and OpenVINO: {self.backend} computes in "
                "float32"
            )

    @property
    def on_cpu(self) -> bool:
        return self.backend in CPU_BACKENDS

    @property
    def cpu_folder(self) -> str:
        """Return the name of the folder of engines for the CPU: openvino, openvino-bf16."""
        is_half = self.on_cpu and self.half == "bfloat16"
        return f"{self.backend}-bf16" if is_half else self.backend
