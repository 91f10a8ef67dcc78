"""Define KL-16, the continuous autoencoder of MAR (Li et al. 2024)."""

from __future__ import annotations

from ..base import Family
from .variants import VARIANTS

FAMILY = Family(
    name="kl_vae",
    variants=VARIANTS,
    exporter="arvg_trt.families.kl_vae.export:KlVaeExporter",
)
