"""Define VAR (Tian et al. 2024): images are generated scale by scale."""

from __future__ import annotations

from ..base import Family
from .spec import VarSpec
from .variants import SNAPSHOTS, UNSIZED, VARIANTS

FAMILY = Family(
    name="var",
    variants=VARIANTS,
    unsized=UNSIZED,
    spec=VarSpec,
    loop="arvg_trt.families.var.loop:VarLoop",
    exporter="arvg_trt.families.var.export:VarExporter",
    snapshots=SNAPSHOTS,
)
