"""RAR (Yu et al. 2024): images token by token, in raster order."""

from __future__ import annotations

from ..base import Family
from .spec import RarSpec
from .variants import UNSIZED, VARIANTS

FAMILY = Family(
    name="rar",
    variants=VARIANTS,
    unsized=UNSIZED,
    spec=RarSpec,
    loop="arvg_trt.families.rar.loop:RarLoop",
    exporter="arvg_trt.families.rar.export:RarExporter",
)
