"""Resolve GPU names, and say what each GPU can compute and which can share one plan.

What is known of GPUs is data with sources and dates: `targets.toml`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from ...errors import BuildError, nearest
from ...runtime.trt_compat import Backend, device_compute_capability
from ..site_names import grouped_names

# "int8_weights" are linears with INT8 weights beside float inputs. A target that lacks a format of
# APART is not refused: it runs such sites in FP16.
Format = Literal["fp16", "bf16", "int8_gemm", "int8_conv", "int8_weights", "int4", "fp8", "fp4"]
APART: tuple[Format, ...] = ("int8_conv", "int8_weights")

# Words that drivers, shops and data sheets put around a name.
_BRAND = re.compile(r"^(nvidia|geforce|tesla|quadro)+")
_MEMORY = re.compile(r"(?<![a-z0-9])\d+ ?gb(?![a-z0-9])")
_VARIANT = re.compile(
    r"(?<=[a-z0-9])(ti|super|laptopgpu|laptop|mobile|generation|pcie|sxm\d?|nvl|hbm\d?e?)+$"
)

# The nearest format comes first. INT8 stands for convolutions, since GPUs that run INT8
# convolutions run INT8 GEMMs too.
_NEAREST: dict[Format, tuple[Format, ...]] = {
    "fp4": ("fp8", "int8_conv", "fp16"),
    "fp8": ("int8_conv", "fp16"),
    "int4": ("int8_gemm", "fp16"),
    "bf16": ("fp16",),
    "int8_conv": ("fp16",),
    "int8_gemm": ("fp16",),
    "int8_weights": ("fp16",),
    "fp16": (),
}
_TEXT: dict[Format, str] = {"int8_gemm": "int8", "int8_conv": "int8", "int8_weights": "int8"}


class Capability(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say what GPUs of a compute capability (86 for 8.6) compute, and which software takes them."""

    number: int
    architecture: str
    formats: tuple[Format, ...]
    serves: dict[str, bool]
    jetson: bool = False
    sources: tuple[str, ...]
    date: date


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a GPU by the sources named; what they do not say is None.

    ``names`` are spelled without spaces. Peaks are dense, in TOPS and TFLOPS.
    """

    names: tuple[str, ...]
    title: str
    capability: int
    memory_gb: float | None = None
    bandwidth_gb_s: float | None = None
    fp32: float | None = None
    fp16: float | None = None
    int8: float | None = None
    fp8: float | None = None
    fp4: float | None = None
    sources: tuple[str, ...]
    date: date


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold the file's tables."""

    schema: Literal["arvg-trt/targets/v1"]
    capability: tuple[Capability, ...]
    gpu: tuple[Gpu, ...]


class TargetRow(msgspec.Struct, frozen=True, kw_only=True):
    """Show what is known of a GPU and of its compute capability; ``gpu`` is None of ``sm86``."""

    gpu: Gpu | None
    capability: Capability

    @property
    def backends(self) -> tuple[str, ...]:
        """Return what takes this GPU, as far as it was looked up."""
        return tuple(name for name, able in self.capability.serves.items() if able)


@cache
def known() -> Table:
    """Return the table of `targets.toml`, read once."""
    return msgspec.toml.decode(Path(__file__).with_name("targets.toml").read_bytes(), type=Table)


@cache
def capabilities() -> dict[int, Capability]:
    return {each.number: each for each in known().capability}


@cache
def gpus() -> dict[str, Gpu]:
    """Return the GPUs by each of their names."""
    return {name: gpu for gpu in known().gpu for name in gpu.names}


@dataclass(frozen=True, slots=True)
class Target:
    """Name a GPU to build for; ``compute_capability`` is 86 for 8.6, ``name`` is what was asked."""

    name: str
    compute_capability: int

    @property
    def sm(self) -> str:
        return f"sm{self.compute_capability}"

    def __str__(self) -> str:
        return self.name if self.name == self.sm else f"{self.name} ({self.sm})"

    def supports(self, form: Format) -> bool:
        return form in capabilities()[self.compute_capability].formats


def resolve_target(name: str, backend: Backend) -> Target:
    """Return the target of a name: ``rtx4090``, ``RTX 4070 Ti``, ``sm86``, ``8.6``, ``orin``.

    Raises:
        BuildError: an unknown name (with the nearest ones), or a GPU that `backend` lacks.
    """
    plain = _plain(name)
    gpu = gpus().get(plain)
    capability = gpu.capability if gpu else _spelled_capability(plain)
    if capability not in capabilities():
        close = nearest(plain[:100], target_names())
        do = f"nearest names: {close}; all: arvg-trt targets"
        raise BuildError("unknown target", where=name[:100], do=do)
    target = Target(name, capability)
    if backend == "tensorrt_rtx" and not capabilities()[capability].serves[backend]:
        raise BuildError(
            f"TensorRT for RTX has no {target.sm}",
            where=name,
            do=_instead(capabilities()[capability]),
        )
    return target


def _instead(capability: Capability) -> str:
    """Say how an engine is made for GPUs that TensorRT for RTX does not compile for."""
    if capability.jetson:
        return (
            "a Jetson builds its own engine: ship it a bundle with the graphs (`arvg-trt bundle`), "
            "and there run `arvg-trt build --from FILE`, with the TensorRT of its JetPack"
        )
    able = ", ".join(f"sm{c.number}" for c in known().capability if c.serves["tensorrt_rtx"])
    return (
        f"it compiles for {able}; for this GPU build with the tensorrt backend on the device itself"
    )


def require_local_gpu(targets: Sequence[Target]) -> None:
    """Refuse targets of TensorRT, which times kernels, that are not the GPU of this machine.

    Raises:
        BuildError: names the target, and what builds for it.
    """
    here = device_compute_capability()
    for target in targets:
        capability = capabilities()[target.compute_capability]
        if here == capability.number:
            continue
        what = f"TensorRT builds for the GPU of this machine, {f'sm{here}' if here else 'none'}"
        do = "build on that device, or use the tensorrt_rtx backend"
        if not capability.serves["tensorrt_rtx"]:
            do = _instead(capability) if capability.jetson else "build on that device"
        raise BuildError(f"{what}, not for {target}", do=do)


def half_instead(required: Mapping[str, Format], targets: Sequence[Target]) -> str | None:
    """Return which quantized sites run in FP16 on the targets of a plan; None where none does.

    `required` maps a site to its format. A format of APART is no reason to refuse a target.
    """
    lacking = {target.sm for form in APART for target in targets if not target.supports(form)}
    sites = [
        site
        for site, form in required.items()
        if form in APART and not all(target.supports(form) for target in targets)
    ]
    if not sites:
        return None
    count = "all" if len(sites) == len(required) else f"{len(sites)} of"
    text = (
        f"{' '.join(sorted(lacking))}: {count} {len(required)} quantized sites run in FP16 there, "
        "which has no INT8 kernel for convolutions, nor for INT8 weights alone"
    )
    gain = "; rounding gains no speed: `--name fp16` builds the same without it"
    return text + (gain if count == "all" else "")


def target_names() -> list[str]:
    """Return the names of all GPUs and compute capabilities, in the shortest spelling."""
    return [*gpus(), *(f"sm{number}" for number in capabilities())]


def target_rows(name: str | None = None) -> list[TargetRow]:
    """Return what is known of every GPU, or of the one of a name.

    Raises:
        BuildError: an unknown name.
    """
    if name is None:
        return [
            TargetRow(gpu=gpu, capability=capabilities()[gpu.capability]) for gpu in known().gpu
        ]
    found = resolve_target(name, "tensorrt")
    capability = capabilities()[found.compute_capability]
    gpu = gpus().get(_plain(name))  # of a compute capability there is none
    return [TargetRow(gpu=gpu, capability=capability)]


def check_formats(required: Mapping[str, Format], targets: Sequence[Target]) -> None:
    """Refuse, before a build, formats that a target lacks.

    `required` maps a site to its format.

    Raises:
        BuildError: names all such sites and targets, and the nearest format that works there.
    """
    wanting: dict[Format, list[str]] = {}
    for site, form in required.items():
        wanting.setdefault(form, []).append(site)
    problems = []
    for form, sites in wanting.items():
        lacking = [target for target in targets if not target.supports(form)]
        if lacking:
            nearest = next(f for f in _NEAREST[form] if all(t.supports(f) for t in lacking))
            names = grouped_names(sites)
            one = len(sites) == 1
            lacked = (
                f"{'wants' if one else f'{len(sites)} sites want'} {_TEXT.get(form, form)}, which "
                f"{' and '.join(map(str, lacking))} {'lacks' if len(lacking) == 1 else 'lack'}"
            )
            what = f"{names} {lacked}" if one else f"{lacked} ({names})"
            problems.append(f"{what}; nearest that works: {_TEXT.get(nearest, nearest)}")
    if problems:
        raise BuildError("; ".join(problems))


def group_targets(
    targets: Iterable[Target], apart: Collection[Format] = ()
) -> tuple[tuple[Target, ...], ...]:
    """Return targets grouped by the plan file they can share, in ascending order.

    There is one target per compute capability. A plan runs an INT8 convolution in FP16, and expands
    an INT8 weight beside float inputs, on *every* target when one of them lacks the kernel. So
    those that lack a format of `apart` get their own plan.
    """
    by_capability: dict[int, Target] = {}
    for target in targets:
        by_capability.setdefault(target.compute_capability, target)
    groups: dict[tuple[bool, ...], list[Target]] = {}
    for capability in sorted(by_capability):
        target = by_capability[capability]
        groups.setdefault(tuple(map(target.supports, apart)), []).append(target)
    return tuple(map(tuple, groups.values()))


def _plain(name: str) -> str:
    """Return a name as the table spells it: without spaces, brands and variants."""
    spelled = re.sub(r"[\s_-]+", "", _MEMORY.sub("", name.lower()))
    return spelled if spelled in gpus() else _VARIANT.sub("", _BRAND.sub("", spelled))


def _spelled_capability(plain: str) -> int | None:
    match = re.fullmatch(r"sm(\d{2,3})|(\d{1,2})\.(\d)", plain)
    return int("".join(part for part in match.groups() if part)) if match else None
