"""The formats that a plan asks of a back end, and their text in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..numerics.scheme import Plan, SitePlan
from .tensorrt.targets import Format

CONVOLUTIONS = ("Conv", "ConvTranspose")  # whose weights alone are expanded on each run everywhere


def is_fp8(entry: SitePlan) -> bool:
    """Return whether a site's input is quantized to FP8."""
    return entry.activation is not None and entry.activation.grid == "fp8"


def required_formats(plan: Plan, ops: Mapping[str, str]) -> dict[str, Format]:
    """Return what a target must have, by site; weights alone where the graph holds their type.

    `ops` are the operators of the sites.
    """
    found: dict[str, Format] = {}
    for entry in plan.sites:
        if is_fp8(entry):
            found[entry.name] = "fp8"
        elif entry.weight is not None and entry.weight.granularity == "per_block":
            found[entry.name] = "int4"
        elif entry.activation is None and entry.weight is not None:
            if entry.weight.grid == "uniform" and ops[entry.name] not in CONVOLUTIONS:
                found[entry.name] = "int8_weights"
        elif entry.activation is not None:
            found[entry.name] = "int8_conv" if ops[entry.name] == "Conv" else "int8_gemm"
    return found


def precision_text(planned: Sequence[SitePlan], half: str) -> str:
    """Return what a graph computes in, e.g. `INT8 + FP16`; `W4` are weights of 4 bits alone."""
    kinds = set()
    for entry in planned:
        if entry.activation is not None:
            kinds.add("FP8" if is_fp8(entry) else "INT8")
        elif entry.weight is not None and entry.weight.grid != "log":
            kinds.add(f"W{entry.weight.bits}")
    rest = {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}[half]
    return "+".join(sorted(kinds)) + f" + {rest}" if kinds else rest
