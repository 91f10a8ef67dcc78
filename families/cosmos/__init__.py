"""Define the Cosmos image tokenizers (NVIDIA 2025)."""

from __future__ import annotations

from ..base import Family
from .variants import UNSIZED, VARIANTS

FAMILY = Family(
    name="cosmos",
    variants=VARIANTS,
    unsized=UNSIZED,
    exporter="arvg_trt.families.cosmos.export:CosmosExporter",
)
