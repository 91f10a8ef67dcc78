"""Define the facts about sites and graphs that quantization leaves in manifests and reports."""

from __future__ import annotations

import msgspec


class SiteRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold a site's formats as text, its weight's SQNR in dB, and why it is not quantized.

    ``weight_sqnr_db`` is None if the weight is not quantized or is represented exactly;
    ``activation_sqnr_db`` is that of rounding its input, where it was measured.
    """

    name: str
    graph: str
    weight: str
    activation: str
    weight_sqnr_db: float | None = None
    activation_sqnr_db: float | None = None
    reason: str | None = None


class OverflowTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Name a tensor that comes near the end of float16, and the nodes that make or read it."""

    graph: str
    tensor: str
    max: float
    nodes: tuple[str, ...]


class QuantizationFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage; ``quantized`` counts sites, ``fp32_tensors`` are overflow risks."""

    sites: tuple[SiteRow, ...]
    packed_bytes: int
    fp32_bytes: int
    quantized: int
    fp32_tensors: tuple[OverflowTensor, ...] = ()
