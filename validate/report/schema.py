"""Define the report of one quantization, its costs and gains, as data with a schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from ...engines.facts import EngineRow
from ...engines.faster.facts import KeptIfFaster
from ...errors import WorkspaceError
from ...quantize.facts import CacheRow, SiteRow
from ..download import SIZE_NOTE, Download
from ..generation_memory import GenerationMemory
from ..intervals.figure import Figure
from ..intervals.speeds import OF_PART, SPEEDS, speeds
from ..machine.start import Starts
from ..machine.watch import MachineLoad
from ..measure.generator_accuracy import GENERATION_NAMES, GeneratorAccuracy, generation_metrics
from ..measure.tokenizer_accuracy import CandidateAccuracy
from ..metrics.image import decibels
from ..metrics.latency import Cpu, Latency, Speed
from ..metrics.outputs import WORST_NAMES, OutputAccuracy, worst
from ..opinion.facts import FigureOpinion, SecondOpinion
from ..quality.reconstruction import QUALITY_METRICS
from .calibration import Calibration
from .gates import GateResult, Verdict

SCHEMA = "arvg-trt/report/v2"
REPORT_FILE = "report.json"
FP32 = "fp32"  # what candidates are compared with
QDQ = "qdq"  # the Q/DQ graph in the reference session
SYNTHETIC = "synthetic noise"  # in place of calibration image names
# The half-precision graph that TensorRT engines are built from, in the reference session.
HALF_PRECISION = "twin"
ENGINE = "engine"  # the engine as executed

CANDIDATES = (QDQ, HALF_PRECISION, ENGINE)

# Parts that are timed: all, a tokenizer's encoder and decoder, or a generator's tokens without
# the image decoder.
Part = Literal["total", "encoder", "decoder", "tokens"]


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """Name the images or samples that were measured, and those that set the ranges.

    For a generator, ``pictures`` are the images that FP32 and the candidates made, with
    ``sampling``, of these ``classes``.
    """

    validation: tuple[str, ...]
    calibration: tuple[str, ...]
    pictures: tuple[str, ...] = ()
    sampling: dict[str, float] = {}
    classes: tuple[int, ...] = ()


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Hold bytes on disk; `sizes` makes it and computes the ratios.

    ``running_bytes`` are of what a candidate's session opens. ``compression`` is FP32's bytes over
    the engine's, or over the Q/DQ graphs' where no engine was executed. ``packed_compression`` is
    that of the weights of quantized graphs in weights.safetensors, ``download_compression`` that of
    what a device gets. ``memory_bytes`` are the peaks of fresh processes, for FP32 and a candidate.
    """

    fp32_graph_bytes: dict[str, int]
    fp32_weight_bytes: int
    packed_weight_bytes: int
    compression: float
    packed_compression: float | None = None
    fp32_running_bytes: int | None = None
    running_bytes: dict[str, int] = {}
    download: Download | None = None
    download_compression: float | None = None
    memory_bytes: dict[str, int] = {}
    note: str

    @property
    def runs(self) -> str | None:
        """Return the candidate that ``compression`` is of; None in a report of an older version."""
        return next((name for name in (ENGINE, QDQ) if name in self.running_bytes), None)


class LatencyRow(msgspec.Struct, frozen=True, kw_only=True):
    """Compare FP32 and the executed engine, interleaved; ``shape`` is the image's or first input's.

    A generator's ``tokens`` are those made in one call, for ``batch`` images.
    """

    fp32: Latency
    engine: Latency
    speed: Speed
    shape: tuple[int, ...]
    batch: int
    threads: int
    tokens: int | None = None


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Name the machine of a validation as far as it decides figures and speeds."""

    system: str
    machine: str
    processors: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all results of a validation; ``accuracy`` is by candidate ("qdq", "twin", "engine").

    So are ``outputs``, which custom graphs have in its place, and a generator's ``generation``.
    ``ran`` says by engine folder which device and provider executed it, ``fallbacks`` what of it
    ran on the CPU instead. ``memory`` is by candidate, of FP32 too. ``figures`` has each metric
    with its interval, by candidate and name, ``percentiles`` the times of each part
    (``total.engine.p90_ms``), ``rates`` what is made in a second (``engine.images_per_s``).
    ``starts`` are by candidate, of FP32 too; ``machine`` says what else ran while rounds were
    timed. ``options`` are those of each stage, ``recipe`` the one that `run` followed, if it is
    this one. ``networks`` has the sha256 of those that measured, by option. ``kept_if_faster`` says
    by engine folder which sites keep their rounded inputs, where those alone do that are faster so.
    """

    schema: Literal["arvg-trt/report/v2"] = "arvg-trt/report/v2"
    model: str
    name: str
    versions: dict[str, str]
    cpu: Cpu
    data: Data
    calibration: Calibration | None = None
    sizes: Sizes
    accuracy: dict[str, CandidateAccuracy]
    outputs: dict[str, tuple[OutputAccuracy, ...]] = {}
    generation: dict[str, GeneratorAccuracy] = {}
    latency: dict[Part, LatencyRow] = {}
    engines: tuple[EngineRow, ...] = ()
    ran: dict[str, str] = {}
    fallbacks: tuple[str, ...] = ()
    sites: tuple[SiteRow, ...] = ()
    caches: tuple[CacheRow, ...] = ()
    memory: dict[str, GenerationMemory] = {}
    second_opinions: tuple[SecondOpinion, ...] = ()
    figure_opinions: tuple[FigureOpinion, ...] = ()
    opinions_not_run: tuple[str, ...] = ()
    gates: tuple[GateResult, ...] = ()
    figures: dict[str, Figure] = {}
    percentiles: dict[str, Figure] = {}
    rates: dict[str, Figure] = {}
    starts: dict[str, Starts] = {}
    machine: MachineLoad | None = None
    options: dict[str, dict[str, Any]] = {}
    networks: dict[str, str] = {}
    recipe: dict[str, Any] | None = None
    environment: Environment | None = None
    kept_if_faster: dict[str, KeptIfFaster] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        for candidate, result in self.accuracy.items():
            if len(result.psnr.each) != len(self.data.validation):
                raise ValueError(
                    f"{candidate} has {len(result.psnr.each)} images, "
                    f"the data names {len(self.data.validation)}"
                )
        for candidate, made in self.generation.items():
            count = len(made.pictures.psnr_vs_fp32.each) if made.pictures else None
            if count not in (None, len(self.data.pictures)):
                raise ValueError(
                    f"{candidate} made {count} images, the data names {len(self.data.pictures)}"
                )

    @property
    def headline(self) -> str | None:
        """Return the candidate that gates read: the engine as executed, else the Q/DQ graph."""
        measured = {*self.accuracy, *self.outputs, *self.generation}
        return next((name for name in (ENGINE, QDQ) if name in measured), None)

    @property
    def busy(self) -> str:
        """Return what others did while rounds were timed, if the machine was busy; else ""."""
        return self.machine.text if self.machine is not None and self.machine.busy else ""

    @property
    def passed(self) -> bool | None:
        """Return whether every gate passed; None if there are none."""
        return all(gate.passed for gate in self.gates) if self.gates else None

    @property
    def verdict(self) -> Verdict | None:
        """Return "failed" if a gate failed, else "inconclusive" if one is; None without gates."""
        found = {gate.verdict for gate in self.gates}
        ranked: tuple[Verdict, ...] = ("failed", "inconclusive", "passed")
        return next((verdict for verdict in ranked if verdict in found), None)


def sizes(
    *,
    fp32_graph_bytes: dict[str, int],
    fp32_weight_bytes: int,
    packed_weight_bytes: int,
    fp32_running_bytes: int,
    running_bytes: dict[str, int],
    download: Download | None = None,
    memory_bytes: dict[str, int] | None = None,
    note: str = SIZE_NOTE,
) -> Sizes:
    """Return sizes with their ratios; `note` says what they count, for the reader of the report.

    Raises:
        WorkspaceError: there are no packed weights, or nothing runs.
    """
    runs = next((running_bytes[name] for name in (ENGINE, QDQ) if name in running_bytes), 0)
    if runs <= 0:
        raise WorkspaceError("no graph has a size", do="quantize the model again")
    if packed_weight_bytes <= 0:
        raise WorkspaceError(
            f"the packed weights have {packed_weight_bytes} bytes", do="quantize the model again"
        )
    if download is not None and download.bytes <= 0:
        raise WorkspaceError("there is nothing to download", do="quantize the model again")
    return Sizes(
        fp32_graph_bytes=fp32_graph_bytes,
        fp32_weight_bytes=fp32_weight_bytes,
        packed_weight_bytes=packed_weight_bytes,
        compression=fp32_running_bytes / runs,
        packed_compression=fp32_weight_bytes / packed_weight_bytes,
        fp32_running_bytes=fp32_running_bytes,
        running_bytes=running_bytes,
        download=download,
        download_compression=fp32_running_bytes / download.bytes if download else None,
        memory_bytes=memory_bytes or {},
        note=note,
    )


ACCURACY: dict[str, Callable[[CandidateAccuracy], float | None]] = {
    "psnr": lambda a: decibels(a.psnr.mean),
    "psnr_min": lambda a: decibels(a.psnr.min),
    "ssim": lambda a: a.ssim.mean,
    "ssim_min": lambda a: a.ssim.min,
    "psnr_drop": lambda a: a.psnr_drop,
    "ssim_drop": lambda a: a.ssim_drop,
    "psnr_vs_fp32": lambda a: decibels(a.psnr_vs_fp32.mean),
    "psnr_vs_fp32_min": lambda a: decibels(a.psnr_vs_fp32.min),
    "ssim_vs_fp32": lambda a: a.ssim_vs_fp32.mean,
    "ssim_vs_fp32_min": lambda a: a.ssim_vs_fp32.min,
    "token_agreement": lambda a: a.token_agreement,
    "latent_sqnr_db": lambda a: decibels(a.latent_sqnr_db),
    "decoder_sqnr_db": lambda a: decibels(a.decoder_sqnr_db),
    "codebook_use": lambda a: a.codebook_use,
    "site_sqnr_db": lambda a: min(map(decibels, a.sites.values()), default=None),
    **QUALITY_METRICS,
}
PARTS: tuple[Part, ...] = ("encoder", "decoder", "tokens")
MEASURED = tuple(dict.fromkeys((*ACCURACY, *WORST_NAMES, *GENERATION_NAMES)))
METRIC_NAMES: tuple[str, ...] = (
    *MEASURED,
    "compression",
    "packed_compression",
    "download_compression",
    *SPEEDS,
    *(f"{part}.{name}" for part in PARTS for name in OF_PART),
    *(f"{candidate}.{name}" for candidate in CANDIDATES for name in MEASURED),
)


def metrics(report: Report) -> dict[str, float | None]:
    """Return each metric by its flat name in METRIC_NAMES, for gates and comparisons.

    Plain accuracy names read the headline candidate; ``qdq.``, ``twin.``, ``engine.`` a given one.
    None is not measured; decibels without any error are inf. Times and rates are the engine's.
    """
    values: dict[str, float | None] = dict.fromkeys(METRIC_NAMES)
    for candidate in CANDIDATES:
        if candidate in report.accuracy:
            for name, read in ACCURACY.items():
                values[f"{candidate}.{name}"] = read(report.accuracy[candidate])
        for name, value in worst(report.outputs.get(candidate, ())).items():
            values[f"{candidate}.{name}"] = value
        if candidate in report.generation:
            made = generation_metrics(report.generation[candidate])
            values |= {f"{candidate}.{name}": value for name, value in made.items()}
    if report.headline is not None:
        values |= {name: values[f"{report.headline}.{name}"] for name in MEASURED}
    if values["site_sqnr_db"] is None:  # an engine has no sites to look into
        values["site_sqnr_db"] = values[f"{QDQ}.site_sqnr_db"]
    sizes = report.sizes
    if sizes.runs is None:  # an older report, whose ratio was that of packed weights
        values["packed_compression"] = sizes.compression
    else:
        values["compression"] = sizes.compression
        values["packed_compression"] = sizes.packed_compression
        values["download_compression"] = sizes.download_compression
    values.update(speeds(report))
    return values
