"""Define what a build records of its engines, in its manifest and in reports."""

from __future__ import annotations

import msgspec

from ..quantize.facts import OverflowTensor


class SiteException(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name a site that an engine does not run as planned, and say why."""

    site: str
    reason: str


class EngineRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one engine file.

    ``int8_sites_proved`` counts the sites whose INT8 kernel was verified in the builder's layer
    list; None where the builder gives no list. ``status`` is "executed", "built, not executed", or
    why there is no engine.
    """

    backend: str
    target: str
    precision: str
    graph: str
    bytes: int
    build_seconds: float
    int8_sites_planned: int
    int8_sites_proved: int | None
    exceptions: tuple[SiteException, ...] = ()
    status: str


class BuildFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage; those of TensorRT name their ``targets``.

    ``gpu`` is the one that TensorRT timed its kernels on. ``fp32_tensors`` are the overflow risks
    of graphs that no quantization lists.
    """

    engines: tuple[EngineRow, ...]
    gpu: str | msgspec.UnsetType = msgspec.UNSET
    targets: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    fp32_tensors: tuple[OverflowTensor, ...] | msgspec.UnsetType = msgspec.UNSET
