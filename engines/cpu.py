"""Build engines for the CPU: ONNX Runtime's, OpenVINO's, or the faster of the two here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArvgError, BuildError, OutOfMemory
from ..extras import missing_packages, not_installed, require_packages
from ..graph.sites import load_sites
from ..numerics.scheme import Plan
from ..recipe.build import BuildOptions
from ..runtime.folders import opener
from ..runtime.generator import Generator
from ..runtime.sessions.open import fast_session
from ..runtime.sessions.processors import may_saturate, processor_name
from ..samples.files import GraphChain, load_sample, sample_files
from ..workspace.facts import Exported
from ..workspace.stage import Reporter
from .facts import BuildFacts, CpuProbe, EngineRow
from .formats import is_fp8

OPENVINO, ONNXRUNTIME = "openvino", "onnxruntime"
SATURATES = (
    "products of INT8 may saturate on this processor, which lacks VNNI, and OpenVINO may not "
    "prevent it"
)
PROBING = "timing both engines"
Runs = Mapping[str, Callable[[], object]]
# Times programs in turn; returns the median of each in ms, and whether the second is faster.
Race = Callable[[Runs], tuple[float, float, bool]]


@dataclass(frozen=True, slots=True)
class CpuBuild:
    """Hold what the engines of a quantization for the CPU are built from.

    `source` has the Q/DQ graphs of the exported `model`; `calibration` the samples.
    """

    model: Exported
    source: Path
    plan: Plan
    calibration: Path
    options: BuildOptions
    reporter: Reporter

    def refuse(self) -> None:
        """Raise ArvgError for sites in FP8, which no CPU has, and a package that is missing."""
        found = [site.name for site in self.plan.sites if is_fp8(site)]
        if found:
            raise BuildError(
                f"{found[0]} wants fp8, which {cpu_title(self.options.backend)} lacks on the CPU, "
                f"and {len(found) - 1} more sites; nearest that works: int8"
            )
        stored = [each.name for each in self.plan.caches or () if each.type == "fp8"]
        if stored:
            raise BuildError(
                f"{stored[0]} stores keys and values in fp8, which no engine for the CPU takes",
                do="quantize with --kv-cache int8",
            )
        if self.options.backend == OPENVINO:
            require_packages(OPENVINO)
        if self.options.backend == "cpu":
            require_packages("report", but=["skimage", "jinja2"])  # scipy judges the race

    @property
    def manifest_options(self) -> dict[str, str]:
        """Return what decides the engines beside their inputs: blobs are for one processor."""
        options = {"backend": str(self.options.backend)}
        if self.options.backend != ONNXRUNTIME or self.options.keep_if_faster is not None:
            options["processor"] = processor_name()
        if self.options.half == "bfloat16":
            options["half"] = "bfloat16"
        if self.options.keep_if_faster is not None:
            options["keep_if_faster"] = f"{self.options.keep_if_faster:g}"
        return options

    @property
    def packages(self) -> tuple[str, ...]:
        own = {ONNXRUNTIME: (), OPENVINO: (OPENVINO,)}.get(self.options.backend, (OPENVINO,))
        return (ONNXRUNTIME, "onnx-ir", *own)

    def write(self, folder: Path, race: Race) -> BuildFacts:
        """Write the engines to a folder, checked on samples of the calibration.

        Raises:
            BuildError: a graph is refused, or is further from its Q/DQ graph than rounding
                explains.
        """
        if self.options.backend == ONNXRUNTIME:
            if self.options.keep_if_faster is not None:
                return self.write_where_faster(folder, self.options.keep_if_faster)
            return BuildFacts(engines=self.write_onnxruntime(folder))
        if self.options.backend == OPENVINO:
            if may_saturate():
                self.reporter.warn(SATURATES)
            return BuildFacts(engines=self.write_openvino(folder))
        return self.write_faster(folder, race)

    def write_onnxruntime(self, folder: Path, source: Path | None = None) -> tuple[EngineRow, ...]:
        """Write ONNX Runtime's engine, of the Q/DQ graphs or of those in another `source`."""
        from .onnxruntime.engine import write_engine

        source = source or self.source
        return write_engine(self.model, source, self.calibration, folder, self.reporter)

    def write_where_faster(self, folder: Path, factor: float) -> BuildFacts:
        """Write ONNX Runtime's engine with those rounded inputs that are faster by a factor.

        It is of the FP32 graphs if none is, or if they are as fast as the engine as a whole.
        """
        from .faster.choose import choose_by_time, in_float, time_whole, with_whole
        from .faster.write import write_decided

        model, plan, reporter = self.model, self.plan, self.reporter
        chosen = choose_by_time(model, self.source, plan, self.calibration, factor, reporter)
        rows: tuple[EngineRow, ...] = ()
        if chosen.is_quantized:
            decided, site_map = folder / "decided", load_sites(model.folder)
            left = in_float(chosen, self.source, site_map, plan)
            write_decided(model.folder, self.source, site_map, left, decided)
            rows = self.write_onnxruntime(folder, decided)
            shutil.rmtree(decided)
            runs = self.runs({"fp32": model.folder, ONNXRUNTIME: folder})
            chosen = with_whole(chosen, time_whole(runs["fp32"], runs[ONNXRUNTIME], reporter))
        if not chosen.is_quantized:
            for file in folder.iterdir():
                file.unlink()
            rows = self.write_onnxruntime(folder, model.folder)
        reporter.say(f"keep_if_faster: {chosen.summary}")
        return BuildFacts(engines=rows, faster=chosen)

    def write_openvino(self, folder: Path) -> tuple[EngineRow, ...]:
        from .openvino.build import build_openvino

        return build_openvino(
            self.model,
            self.source,
            self.plan,
            self.calibration,
            folder,
            "bf16" if self.options.half == "bfloat16" else "f32",
            self.reporter,
        )

    def write_faster(self, folder: Path, race: Race) -> BuildFacts:
        """Write both engines, time them in turn, and keep the faster one in the folder."""
        places = {name: folder / name for name in (ONNXRUNTIME, OPENVINO)}
        places[ONNXRUNTIME].mkdir()
        rows = {ONNXRUNTIME: self.write_onnxruntime(places[ONNXRUNTIME])}
        reason = self.write_second(places[OPENVINO], rows)
        if reason is not None:
            probe = CpuProbe(chosen=ONNXRUNTIME, reason=reason)
        else:
            self.reporter.progress(PROBING, 0, 1)
            probe = judged(*race(self.runs(places)))
            self.reporter.progress(PROBING, 1, 1)
        for file in places[probe.chosen].iterdir():
            file.rename(folder / file.name)
        for place in places.values():
            shutil.rmtree(place, ignore_errors=True)
        self.reporter.say(f"engine for the CPU: {probe.chosen}: {probe.reason}")
        return BuildFacts(engines=rows[probe.chosen], probe=probe)

    def write_second(self, place: Path, rows: dict[str, tuple[EngineRow, ...]]) -> str | None:
        """Write OpenVINO's engine beside the other; return why there is none, None if there is."""
        missing = missing_packages([OPENVINO])
        if missing:
            return str(not_installed(missing))
        if may_saturate():
            return SATURATES
        place.mkdir()
        try:
            rows[OPENVINO] = self.write_openvino(place)
        except OutOfMemory:
            raise
        except ArvgError as error:
            return f"OpenVINO's is refused: {error}"
        return None

    def runs(self, places: Mapping[str, Path]) -> Runs:
        """Return what is timed of each engine: a sample through all graphs, or a picture."""
        if self.model.kind == "generator":
            generators = {
                name: Generator.open(place, device="cpu", verify=False)
                for name, place in places.items()
            }
            return {name: generation(each) for name, each in generators.items()}
        graphs = load_sites(self.model.folder).graphs
        sample = load_sample(sample_files(self.calibration / "samples")[0])
        chains = {
            name: GraphChain.open(place, graphs, session=opener(place, fast_session, "cpu"))
            for name, place in places.items()
        }
        return {name: chain_run(chain, sample) for name, chain in chains.items()}


def generation(generator: Generator) -> Callable[[], object]:
    return lambda: generator.generate([0])


def chain_run(chain: GraphChain, sample: Mapping[str, object]) -> Callable[[], object]:
    return lambda: chain.run(sample)  # type: ignore[arg-type]


def cpu_title(backend: str) -> str:
    """Return what messages call a back end of the CPU."""
    return {ONNXRUNTIME: "ONNX Runtime", OPENVINO: "OpenVINO"}.get(backend, backend)


def judged(onnxruntime: float, openvino: float, is_faster: bool) -> CpuProbe:
    """Return which engine is kept: OpenVINO's where the interval of the ratio says it is faster."""
    times = f"OpenVINO {openvino:.1f} ms, ONNX Runtime {onnxruntime:.1f} ms"
    return CpuProbe(
        chosen=OPENVINO if is_faster else ONNXRUNTIME,
        reason=f"{times} (medians of rounds in turn)",
        onnxruntime_ms=onnxruntime,
        openvino_ms=openvino,
    )
