"""What quantization tells of its sites and graphs, in its manifest and in reports."""

from __future__ import annotations

import msgspec


class SiteRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One site: its formats as text, the SQNR of its weight in dB, why it is not quantized.

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
    """A tensor that comes near the end of float16; `nodes` make it or read it, by name."""

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
