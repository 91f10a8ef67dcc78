"""Say how fast a machine moves bytes and multiplies, from the table of targets or a measurement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from ...errors import BuildError
from ...recipe.quantize import MACHINE_SUFFIX
from ...workspace.files import decode_json
from ..tensorrt.targets import Gpu, target_rows

# How a product is computed: its weights and inputs in these bits.
ProductFormat = Literal["fp32", "fp16", "w8a8", "fp8", "w8a16", "w4a16"]
FORMATS: tuple[ProductFormat, ...] = get_args(ProductFormat)
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e20)]


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold what a roofline needs of a machine.

    `bandwidth` is in bytes a second; `peaks` are operations a second of each format that it
    computes, a multiplication and an addition being two. `source` says where they are from.
    """

    name: str
    bandwidth: Rate
    peaks: dict[ProductFormat, Rate]
    source: str
    schema: Literal["arvg-trt/machine/v1"] = "arvg-trt/machine/v1"

    def __post_init__(self) -> None:
        if not self.peaks:
            raise ValueError("a machine computes at least one format")


def find_machine(name: str) -> Machine:
    """Return the machine of a target's name, or that in a file which `probe` wrote.

    Raises:
        BuildError: an unknown target, one whose bandwidth or peaks are not known, or a bad file.
    """
    if name.endswith(MACHINE_SUFFIX):
        return decode_json(
            Path(name), Machine, do="measure it with `arvg-trt probe`", error=BuildError
        )
    gpu = target_rows(name)[0].gpu
    if gpu is None:
        raise BuildError(
            "is a compute capability: GPUs that have it differ in bandwidth and peaks",
            where=name,
            do="name a GPU; `arvg-trt targets` lists them",
        )
    return gpu_machine(gpu)


def gpu_machine(gpu: Gpu) -> Machine:
    """Return a GPU's dense peaks and bandwidth.

    Raises:
        BuildError: its sources do not say them.
    """
    if gpu.bandwidth_gb_s is None or gpu.fp16 is None:
        raise BuildError(
            "its bandwidth and its FP16 peak are not both known",
            where=gpu.title,
            do="choose another target, or write both into a file as `arvg-trt probe` does",
        )
    half = gpu.fp16 * 1e12
    peaks: dict[ProductFormat, float] = {"fp16": half, "w8a16": half, "w4a16": half}
    others: dict[ProductFormat, float | None] = {
        "fp32": gpu.fp32,
        "w8a8": gpu.int8,
        "fp8": gpu.fp8,
    }
    peaks |= {name: peak * 1e12 for name, peak in others.items() if peak is not None}
    return Machine(
        name=gpu.title,
        bandwidth=gpu.bandwidth_gb_s * 1e9,
        peaks=peaks,
        source=f"{', '.join(gpu.sources)} ({gpu.date})",
    )
