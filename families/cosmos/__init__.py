"""Define the Cosmos image tokenizers (NVIDIA 2025)."""

from __future__ import annotations

from ..base import Family
from .variants import ANY_SIZE, VARIANTS

FAMILY = Family(
    name="cosmos",
    variants=VARIANTS,
    any_size=ANY_SIZE,
    exporter="arvg_trt.families.cosmos.export:CosmosExporter",
)
