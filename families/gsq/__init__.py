"""Define the GSQ image tokenizers (Wang et al. 2024): grouped spherical quantization."""

from __future__ import annotations

from ..base import Family
from .variants import UNSIZED, VARIANTS

FAMILY = Family(
    name="gsq",
    variants=VARIANTS,
    unsized=UNSIZED,
    exporter="arvg_trt.families.gsq.export:GsqExporter",
)
