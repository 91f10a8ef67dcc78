"""Say in which format an engine computes a site as planned, and what another would take more."""

from __future__ import annotations

from ...numerics.scheme import BLOCK_BITS, SitePlan
from .machine import ProductFormat
from .predict import Prediction


def form_of(entry: SitePlan, prediction: Prediction) -> ProductFormat:
    """Return the format in which engines multiply: fewer than 8 bits are computed as INT8."""
    if entry.weight is None:
        return "fp16" if "fp16" in prediction.machine.peaks else "fp32"
    if entry.activation is None:
        narrow = entry.weight.block is not None and entry.weight.bits <= BLOCK_BITS
        return "w4a16" if narrow else "w8a16"
    return "fp8" if entry.weight.grid == "fp8" else "w8a8"


def raise_seconds(prediction: Prediction, entry: SitePlan, raised: SitePlan) -> float | None:
    """Return what a batch takes longer with a site raised; None where that is not predicted.

    A product of two inputs has no weight by which its formats are told apart, and a machine may
    lack a format.
    """
    cost = prediction.sites.get(entry.name)
    if cost is None:
        return None
    before, after = (cost.seconds.get(form_of(each, prediction)) for each in (entry, raised))
    return None if before is None or after is None else after - before
