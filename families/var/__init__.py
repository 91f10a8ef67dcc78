"""Define VAR (Tian et al. 2024): images are generated scale by scale."""

from __future__ import annotations

from ..base import Family
from .spec import VarSpec
from .variants import ANY_SIZE, SNAPSHOTS, VARIANTS

FAMILY = Family(
    name="var",
    variants=VARIANTS,
    any_size=ANY_SIZE,
    spec=VarSpec,
    loop="arvg_trt.families.var.loop:VarLoop",
    exporter="arvg_trt.families.var.export:VarExporter",
    snapshots=SNAPSHOTS,
)
