"""Define KL-16, the continuous autoencoder of MAR (Li et al. 2024)."""

from __future__ import annotations

from ..base import Family, Variant

FILES = (("kl16.ckpt",), ("vae.safetensors",))
FAMILY = Family(
    name="kl_vae",
    unsized=Variant("kl-16", "kl_vae", 0, None, FILES),
    exporter="arvg_trt.families.kl_vae.export:KlVaeExporter",
)
