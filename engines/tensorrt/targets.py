"""Resolve GPU names, and say what each GPU can compute and which can share one plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...errors import BuildError, nearest
from ...runtime.trt_compat import Backend

Format = Literal["fp16", "bf16", "int8_gemm", "int8_conv", "int4", "fp8", "fp4"]

_NAMES: dict[str, int] = {
    **dict.fromkeys(("t4", "rtx2060", "rtx2070", "rtx2080", "rtx8000"), 75),
    **dict.fromkeys(("a30", "a100", "a800"), 80),
    **dict.fromkeys(("a2", "a10", "a16", "a40", "rtxa2000", "rtxa4000", "rtxa4500"), 86),
    **dict.fromkeys(("rtxa5000", "rtxa5500", "rtxa6000"), 86),
    **dict.fromkeys(("rtx3050", "rtx3060", "rtx3070", "rtx3080", "rtx3090"), 86),
    **dict.fromkeys(("jetsonorin", "orin", "orinnano", "orinnx", "agxorin"), 87),
    **dict.fromkeys(("l4", "l20", "l40", "l40s", "rtx2000ada", "rtx4000ada", "rtx4500ada"), 89),
    **dict.fromkeys(("rtx5000ada", "rtx6000ada"), 89),
    **dict.fromkeys(("rtx4050", "rtx4060", "rtx4070", "rtx4080", "rtx4090"), 89),
    **dict.fromkeys(("h100", "h200", "h800", "h20", "gh200"), 90),
    **dict.fromkeys(("b100", "b200", "gb200"), 100),
    **dict.fromkeys(("jetsonthor", "thor"), 110),
    **dict.fromkeys(("rtx5050", "rtx5060", "rtx5070", "rtx5080", "rtx5090", "rtxpro6000"), 120),
    **dict.fromkeys(("gb10", "dgxspark"), 121),
}
# Words that drivers, shops and data sheets put around a name.
_BRAND = re.compile(r"^(nvidia|geforce|tesla|quadro)+")
_MEMORY = re.compile(r"(?<![a-z0-9])\d+ ?gb(?![a-z0-9])")
_VARIANT = re.compile(
    r"(?<=[a-z0-9])(ti|super|laptopgpu|laptop|mobile|generation|pcie|sxm\d?|nvl|hbm\d?e?)+$"
)

_TURING: frozenset[Format] = frozenset({"fp16", "int8_gemm"})
_AMPERE: frozenset[Format] = _TURING | {"bf16", "int8_conv", "int4"}
_ADA: frozenset[Format] = _AMPERE | {"fp8"}
_BLACKWELL: frozenset[Format] = _ADA | {"fp4"}
_FORMATS: dict[int, frozenset[Format]] = {
    75: _TURING,
    **dict.fromkeys((80, 86, 87), _AMPERE),
    **dict.fromkeys((89, 90), _ADA),
    **dict.fromkeys((100, 110, 120, 121), _BLACKWELL),
}
_RTX_CAPABILITIES = frozenset({75, 80, 86, 89, 120, 121})

# The nearest format comes first. INT8 stands for convolutions, since GPUs that run INT8
# convolutions run INT8 GEMMs too.
_NEAREST: dict[Format, tuple[Format, ...]] = {
    "fp4": ("fp8", "int8_conv", "fp16"),
    "fp8": ("int8_conv", "fp16"),
    "int4": ("int8_gemm", "fp16"),
    "bf16": ("fp16",),
    "int8_conv": ("fp16",),
    "int8_gemm": ("fp16",),
    "fp16": (),
}
_TEXT: dict[Format, str] = {"int8_gemm": "int8", "int8_conv": "int8"}


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
        return form in _FORMATS[self.compute_capability]


def resolve_target(name: str, backend: Backend) -> Target:
    """Return the target of a name: ``rtx4090``, ``RTX 4070 Ti``, ``sm86``, ``8.6``, ``orin``.

    Raises:
        BuildError: an unknown name (with the nearest ones), or a GPU that `backend` lacks.
    """
    spelled = re.sub(r"[\s_-]+", "", _MEMORY.sub("", name.lower()))
    plain = spelled if spelled in _NAMES else _VARIANT.sub("", _BRAND.sub("", spelled))
    capability = _NAMES.get(plain) or _spelled_capability(plain)
    if capability not in _FORMATS:
        close = nearest(plain[:100], target_names())
        raise BuildError("unknown target", where=name[:100], do=f"nearest names: {close}")
    target = Target(name, capability)
    if backend == "tensorrt_rtx" and capability not in _RTX_CAPABILITIES:
        raise BuildError(
            f"TensorRT for RTX has no {target.sm}",
            where=name,
            do="it compiles for "
            f"{', '.join(f'sm{number}' for number in sorted(_RTX_CAPABILITIES))}; "
            "for this GPU build with the tensorrt backend on the device itself",
        )
    return target


def target_names() -> list[str]:
    """Return the names of all GPUs and compute capabilities, in the shortest spelling."""
    return [*_NAMES, *(f"sm{number}" for number in sorted(_FORMATS))]


def check_formats(required: Mapping[str, Format], targets: Sequence[Target]) -> None:
    """Refuse, before a build, formats that a target lacks.

    `required` maps a site to its format.

    Raises:
        BuildError: names the first such site and target, the number of others, and the nearest
            format that works there.
    """
    lacking = {
        site: (form, target)
        for target in reversed(targets)
        for site, form in required.items()
        if not target.supports(form)
    }
    if not lacking:
        return
    site = next(name for name in required if name in lacking)
    form, target = lacking[site]
    nearest = next(other for other in _NEAREST[form] if target.supports(other))
    more = len(lacking) - 1
    others = f", and {more} more site{'s'[: more > 1]}" if more else ""
    raise BuildError(
        f"{site} wants {_TEXT.get(form, form)}, which {target} lacks{others}; "
        f"nearest that works: {_TEXT.get(nearest, nearest)}"
    )


def group_targets(
    targets: Iterable[Target], *, has_int8_conv: bool
) -> tuple[tuple[Target, ...], ...]:
    """Return targets grouped by the plan file they can share, in ascending order.

    There is one target per compute capability. A plan runs an INT8 convolution in FP16 on *every*
    target when one of them lacks it, so with `has_int8_conv` those that lack it get their own plan.
    """
    by_capability: dict[int, Target] = {}
    for target in targets:
        by_capability.setdefault(target.compute_capability, target)
    ordered = [by_capability[capability] for capability in sorted(by_capability)]
    if not has_int8_conv:
        return (tuple(ordered),) if ordered else ()
    groups = (
        tuple(target for target in ordered if target.supports("int8_conv") is able)
        for able in (False, True)
    )
    return tuple(group for group in groups if group)


def _spelled_capability(plain: str) -> int | None:
    match = re.fullmatch(r"sm(\d{2,3})|(\d{1,2})\.(\d)", plain)
    return int("".join(part for part in match.groups() if part)) if match else None
