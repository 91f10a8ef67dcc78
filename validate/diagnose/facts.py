"""Define what a diagnosis says: of each site, of the parts of a model, and what to raise."""

from __future__ import annotations

from typing import Literal

import msgspec


class SiteDiagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the signal to noise ratios of one site in dB; None where there is no error at all.

    At the site's own output: ``accumulated_db`` with all sites before it quantized, ``alone_db``
    with this site alone, and ``input_db`` and ``weight_db`` with its input or weight alone (absent:
    not rounded, or not measured). ``model_db`` is that of the graph's outputs with this site alone
    quantized, ``share`` its part of what all sites do there alone. Where not ``finite`` a value is
    NaN or infinite, and the ratios are None. ``ranges`` has ``accumulated_db`` by scale, position
    or time step.
    """

    name: str
    graph: str
    part: str
    weight: str
    activation: str
    finite: bool
    accumulated_db: float | None
    alone_db: float | None
    input_db: float | msgspec.UnsetType | None = msgspec.UNSET
    weight_db: float | msgspec.UnsetType | None = msgspec.UNSET
    model_db: float | None
    share: float | None
    ranges: dict[str, float | None] = {}


class OddScale(msgspec.Struct, frozen=True, kw_only=True):
    """Name a scale that is off: ``factor`` times it, the site's own error falls by ``gain_db``.

    ``scale`` is that of the site's input or weight; None for a gain from what was not finite.
    """

    name: str
    graph: str
    scale: str
    factor: float
    gain_db: float | None


class Raised(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a site to raise ``to`` a format, after those above it in the list.

    ``kib`` is what its weight takes more, ``us`` what an image takes longer on the diagnosis's
    ``target``, predicted from bytes and operations (absent: no target, or a product of two
    inputs). ``predicted_db`` is what the model's outputs would have
    with it and those above raised, if errors add up; ``measured_db`` is what they have. Both are of
    samples that the order was not chosen on; None: not measured, or no error at all.
    """

    name: str
    graph: str
    to: str
    kib: float
    us: float | msgspec.UnsetType = msgspec.UNSET
    predicted_db: float | None
    measured_db: float | None = None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was found out about a quantization.

    A graph's error is relative to its outputs, each graph fed what FP32's is fed; the model's is
    the mean over ``graphs``, whose ratios are in dB. ``model_db`` was measured on the samples that
    sites are ranked on, ``held_out_db`` on the others; ``ranked_on`` and ``measured_on`` are runs
    of these, of all graphs. ``samples`` are the first of those that are ``given``. ``shares`` are
    those of parts of the model in what its sites do alone; ``explained`` is how much of the whole
    error they add up to.
    ``odd_scales`` are those that gain most by another factor, the worst first. ``unmeasured`` says
    of graphs why they were not. ``requantized_db`` is what `quantize` reaches with the new plan.
    All are of the Q/DQ graphs; ``engine_db`` is what ONNX Runtime's engine has on the runs of
    ``held_out_db`` (absent: none was built of this quantization, or it is a generator's).
    """

    model: str
    name: str
    samples: tuple[str, ...]
    given: int
    samples_from: Literal["held-out", "calibration"]
    ranked_on: int
    measured_on: int
    separate: bool
    graphs: dict[str, float | None]
    model_db: float | None
    held_out_db: float | None
    explained: float | None
    shares: dict[str, float]
    first_not_finite: str | None
    odd_scales: tuple[OddScale, ...]
    sites: tuple[SiteDiagnosis, ...]
    raised: tuple[Raised, ...]
    exclude: tuple[str, ...]
    unmeasured: dict[str, str] = {}
    requantized_db: float | None = None
    engine_db: float | msgspec.UnsetType | None = msgspec.UNSET
    target: str | msgspec.UnsetType = msgspec.UNSET
    schema: Literal["arvg-trt/diagnosis/v1"] = "arvg-trt/diagnosis/v1"
