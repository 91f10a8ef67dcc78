"""Define what a build records of its engines, in its manifest and in reports."""

from __future__ import annotations

import msgspec

from ..quantize.facts import OverflowTensor
from ..workspace.facts import facts
from ..workspace.manifest import Manifest
from .faster.facts import KeptIfFaster

BUILT, EXECUTED = "built, not executed", "executed"  # what an engine's row says of it


class SiteException(msgspec.Struct, frozen=True, kw_only=True):
    """Name a site that an engine does not run as planned, and say why."""

    site: str
    reason: str


class EngineProof(msgspec.Struct, frozen=True, kw_only=True):
    """Say what an engine computes in, as read off the builder's layer list.

    ``shares`` divides the multiplications of GEMMs and convolutions, at the best shapes of the
    profile, by what they are computed in: `INT8`, `FP16`, `INT4 weights` (expanded in the kernel,
    multiplied in half). ``uncounted`` are products whose shapes do not follow from the inputs'.
    ``weight_sites_planned`` have quantized weights beside float inputs; ``weight_sites_proved`` of
    them keep their bits in the plan and, but for convolutions, are expanded within the product.
    ``split_attentions`` are softmaxes that are a kernel of their own between two products.
    ``conversions`` are kernels that only convert types or move data.
    """

    macs: int
    shares: dict[str, float]
    uncounted: tuple[str, ...] = ()
    weight_sites_planned: int = 0
    weight_sites_proved: int = 0
    constant_bytes: dict[str, int] = {}
    attentions: int = 0
    split_attentions: tuple[str, ...] = ()
    kernels: int = 0
    conversions: int = 0


class EngineRow(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one engine file.

    ``int8_sites_proved`` counts the sites whose INT8 kernel was verified in the builder's layer
    list; None where the builder gives no list. ``proof`` is None there too, of ONNX Runtime's
    engines, and of those that an older version built. ``status`` is "executed",
    "built, not executed", or why there is no engine.
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
    proof: EngineProof | None = None
    status: str


class CpuProbe(msgspec.Struct, frozen=True, kw_only=True):
    """Say which of two engines is kept for the CPU, and why; medians in ms of what was timed."""

    chosen: str
    reason: str
    onnxruntime_ms: float | None = None
    openvino_ms: float | None = None


class BuildFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the stage; those of TensorRT name their ``targets``, of ``cpu`` its ``probe``.

    ``gpu`` is the one that TensorRT timed its kernels on. ``fp32_tensors`` are the overflow risks
    of graphs that no quantization lists. ``faster`` says which sites kept their rounded inputs,
    where a build was to keep those alone that are faster.
    """

    engines: tuple[EngineRow, ...]
    probe: CpuProbe | msgspec.UnsetType = msgspec.UNSET
    gpu: str | msgspec.UnsetType = msgspec.UNSET
    targets: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    fp32_tensors: tuple[OverflowTensor, ...] | msgspec.UnsetType = msgspec.UNSET
    faster: KeptIfFaster | msgspec.UnsetType = msgspec.UNSET


def proof_line(manifest: Manifest) -> str | None:
    """Return how many sites of a build for GPUs are what was planned; None where nothing says it.

    Where rules of a target explain the others, the report names each.
    """
    engines = facts(manifest, BuildFacts).engines
    if not engines or any(row.proof is None or row.int8_sites_proved is None for row in engines):
        return None
    proofs = [row.proof for row in engines if row.proof is not None]
    planned = sum(row.int8_sites_planned for row in engines)
    planned += sum(proof.weight_sites_planned for proof in proofs)
    if not planned:
        return None
    proved = sum(row.int8_sites_proved or 0 for row in engines)
    proved += sum(proof.weight_sites_proved for proof in proofs)
    macs: dict[str, float] = {}
    for proof in proofs:
        for kind, share in proof.shares.items():
            macs[kind] = macs.get(kind, 0.0) + share * proof.macs
    counted = sorted(((n, kind) for kind, n in macs.items() if n > 0), reverse=True)
    parts = ", ".join(f"{n / sum(macs.values()):.1%} {kind}" for n, kind in counted)
    text = f"{proved} of {planned} planned sites proved by the layer list"
    return f"{text}; multiplications {parts}" if parts else text
