"""Define VAR's multi-scale VQVAE (Tian et al. 2024)."""

from __future__ import annotations

from ..base import Family
from .variants import VARIANTS

FAMILY = Family(
    name="var_vqvae",
    variants=VARIANTS,
    exporter="arvg_trt.families.var_vqvae.export:VarVqvaeExporter",
)
