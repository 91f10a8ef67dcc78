"""Define VAR's multi-scale VQVAE (Tian et al. 2024)."""

from __future__ import annotations

from ..base import Family, Variant

FILES = (("vae_ch160v4096z32.pth",), ("vae_ch160v4096z32.safetensors",), ("vae.safetensors",))
FAMILY = Family(
    name="var_vqvae",
    unsized=Variant("var-vqvae", "var_vqvae", 0, None, FILES),
    exporter="arvg_trt.families.var_vqvae.export:VarVqvaeExporter",
)
