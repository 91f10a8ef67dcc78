"""Define MAR (Li et al. 2024): continuous tokens in random order, each through a diffusion."""

from __future__ import annotations

from ..base import Family
from .spec import MarSpec
from .variants import UNSIZED, VARIANTS

FAMILY = Family(
    name="mar",
    variants=VARIANTS,
    unsized=UNSIZED,
    spec=MarSpec,
    loop="arvg_trt.families.mar.loop:MarLoop",
    exporter="arvg_trt.families.mar.export:MarExporter",
)
