"""Diagnose a quantization of a workspace: samples, measurement, and the plan it proposes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import msgspec

from ..calibrate.calibrated import Calibrated
from ..errors import RecipeError, WorkspaceError
from ..graph.sites import Site, SiteMap
from ..numerics.scheme import Plan, SitePlan
from ..pipeline.validate import calibrated_classes
from ..quantize.facts import QuantizationFacts
from ..quantize.plan import check_patterns, check_plan
from ..recipe.commands import DiagnoseOptions
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..recipe.validate import ValidateOptions
from ..runtime.folders import read_spec
from ..samples.base import require_enough
from ..samples.encoded import EncodedImages
from ..samples.files import Sample, sample_files
from ..validate.diagnose.diagnosis import (
    QuantizedGraph,
    mean,
    relative_db,
)
from ..validate.diagnose.engine import engine_noise
from ..validate.diagnose.facts import Diagnosis
from ..validate.diagnose.feeds import SavedFeeds, save_feeds, save_samples
from ..validate.diagnose.ranking import (
    raised_plan,
    with_readers,
)
from ..validate.diagnose.rows import odd_scales, shares_of, site_rows
from ..validate.measure.kinds import open_measurement
from ..workspace.facts import Exported, facts, model_name
from ..workspace.files import decode_json
from ..workspace.manifest import MANIFEST
from ..workspace.stage import Reporter, require_outputs
from ..workspace.verify import verify
from ..workspace.workspace import Workspace
from .site_raises import choose, measured_raises, prediction_for, raised_rows

CALIBRATION: Literal["calibration"] = "calibration"
# Each site runs on its own with each sample that ranks: so many are taken where nobody says it, of
# those that are given, and of what a generator makes or the calibration has saved.
MOST_GIVEN, MOST_MADE = 32, 4


@dataclass(frozen=True, slots=True)
class OpenedSamples:
    """Hold the samples that are taken, their names, and how many are `given` in all."""

    samples: Iterator[Sample] | Path
    names: tuple[str, ...]
    origin: Literal["held-out", "calibration"]
    given: int


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """Hold what was found, and the plan with the first sites raised (None: there is none)."""

    diagnosis: Diagnosis
    plan: Plan | None


def diagnose_workspace(
    workspace: Workspace,
    name: str,
    options: ValidateOptions,
    asked: DiagnoseOptions,
    reporter: Reporter,
    max_memory: int = MAX_MEMORY,
) -> Diagnosed:
    """Measure the sites of a quantization, rank them, and measure the model with the first raised.

    Outputs that are compared, and constants of changed graphs, take at most `max_memory` bytes at a
    time. Without held-out samples those of the calibration are used, and the result says so.

    Raises:
        WorkspaceError: a stage was not run, or its files are not what it wrote.
        RecipeError: a pattern that matches no quantized site.
        CalibrationError: samples that cannot be used.
        AccuracyError: FP32 itself gives NaN.
        BuildError: times are asked for on a target that is not known.
    """
    folder, manifest = require_outputs(workspace, "quantize", name, stage="quantize")
    prediction = prediction_for(workspace, asked.target)
    source = Calibrated.open(workspace)
    plan = decode_json(folder / "plan.json", Plan, do="run `arvg-trt quantize` again")
    entries = check_plan(plan, source.planned)
    planned = [site for site in source.planned.sites if is_quantized(entries[site.name])]
    check_patterns("site", asked.sites, [site.name for site in planned])
    chosen = [s for s in planned if not asked.sites or matches(s, asked.sites)]
    with TemporaryDirectory() as scratch:
        opened = open_samples(workspace, options)
        samples = (
            opened.samples
            if isinstance(opened.samples, Path)
            else save_samples(opened.samples, Path(scratch) / "samples")
        )
        most = None if source.generates else len(opened.names)  # a generator's are runs
        feeds = save_feeds(
            source.export,
            source.planned.graphs,
            samples,
            Path(scratch) / "feeds",
            reporter.progress,
            most=most,
            threads=options.threads,
        )
        graphs = opened_graphs(source, folder, entries, planned, feeds, max_memory, options.threads)
        found = {
            graph: each.findings([s for s in chosen if s.graph == graph], reporter.progress)
            for graph, each in graphs.items()
        }
        best = choose(found, chosen, entries, asked, prediction)
        measured = measured_raises(graphs, best, asked, reporter)
        raised = with_readers(best, entries, planned, asked.to)
        proposal = raised_plan(plan, raised) if raised else None
        engine = None if source.generates else built_engine(workspace, name)
        executed = engine_noise(engine, graphs) if engine is not None else None
        reached = None
        if asked.requantize and proposal is not None:
            written = Path(scratch) / "quantized"
            written.mkdir()
            had = msgspec.convert(dict(manifest.options), QuantizeOptions)
            quantize_by(source, proposal, had, written, reporter)
            reached = mean(
                replace(each, quantized=written).raised_noise((), feeds.halves(graph)[1])
                for graph, each in graphs.items()
            )
    noise = mean(each.noise for each in found.values())
    rows = {row.name: row for row in facts(manifest, QuantizationFacts).sites}
    sites = site_rows(source, planned, rows, found)
    together = sum(sum(each.at_outputs.values()) for each in found.values()) / len(found)
    halves = [feeds.halves(graph) for graph in graphs]
    counts = [len(feeds.runs[graph]) for graph in graphs]
    diagnosis = Diagnosis(
        model=model_name(source.exported),
        name=name,
        samples=opened.names,
        given=opened.given,
        samples_from=opened.origin,
        ranked_on=sum(len(range(n)[h[0]]) for n, h in zip(counts, halves, strict=True)),
        measured_on=sum(len(range(n)[h[1]]) for n, h in zip(counts, halves, strict=True)),
        separate=all(count > 1 for count in counts),
        graphs={graph: relative_db(each.noise) for graph, each in found.items()},
        model_db=relative_db(noise),
        held_out_db=relative_db(measured[0]),
        explained=together / noise if 0 < noise < math.inf and not asked.sites else None,
        shares=shares_of(sites, found),
        first_not_finite=next((row.name for row in sites if not row.finite), None),
        odd_scales=odd_scales(planned, found),
        sites=sites,
        raised=raised_rows(best, noise, measured),
        target=msgspec.UNSET if prediction is None else prediction.machine.name,
        exclude=tuple(raised) if asked.to == "high" else (),
        unmeasured=unmeasured(source.planned, planned, feeds),
        requantized_db=relative_db(reached),
        engine_db=msgspec.UNSET if executed is None else relative_db(executed),
    )
    return Diagnosed(diagnosis, proposal)


def built_engine(workspace: Workspace, name: str) -> Path | None:
    """Return the folder of ONNX Runtime's engine of a quantization; None without one of this very.

    An engine of an earlier one says nothing of what is diagnosed.
    """
    folder = workspace.folder("engines", name, "onnxruntime")
    if not (folder / MANIFEST).is_file():
        return None
    try:
        verify(folder)
    except WorkspaceError:
        return None
    return folder


def is_quantized(entry: SitePlan) -> bool:
    return entry.weight is not None or entry.activation is not None


def matches(site: Site, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(site.name, pattern) for pattern in patterns)


def open_samples(workspace: Workspace, options: ValidateOptions) -> OpenedSamples:
    """Open held-out samples, or the folder of the calibration's.

    A generator makes its own of a seed, with what its image decoder is fed of each; a tokenizer or
    custom graphs without images or feeds have those that calibration has saved.

    Raises:
        CalibrationError: samples that cannot be used, or fewer than are asked for.
    """
    model = Exported.open(workspace)
    asked, is_given = options.samples, not (options.images is None and options.feeds is None)
    if model.kind != "generator" and not is_given:
        folder = workspace.folder("calibrate") / "samples"
        names = [path.name for path in sample_files(folder)]
        require_enough(len(names), asked, str(folder))
        taken = tuple(names[: asked or MOST_MADE])
        return OpenedSamples(folder, taken, CALIBRATION, len(names))
    # All that are given are opened, to say how many these are.
    wanted = None if is_given else asked or MOST_MADE
    opened = msgspec.structs.replace(options, samples=wanted)
    measurement = open_measurement(model, opened, calibrated_classes(workspace))
    source, names = measurement.sources[-1], list(measurement.names)
    if is_given:
        require_enough(len(names), asked, options.feeds or options.images or "")
    taken = tuple(names[: asked or MOST_GIVEN])
    if isinstance(source, EncodedImages):
        source = replace(source, part=range(len(taken)))
    samples = source.all_decoded().samples(lambda task, done, total: None)
    # An image of a generator is several samples.
    count = None if model.kind == "generator" else len(taken)
    return OpenedSamples(islice(samples, count), taken, "held-out", len(names))


def opened_graphs(
    source: Calibrated,
    quantized: Path,
    entries: Mapping[str, SitePlan],
    planned: Sequence[Site],
    feeds: SavedFeeds,
    most: int,
    threads: int,
) -> dict[str, QuantizedGraph]:
    """Return the graphs that have a quantized site and are fed, in the order that they run.

    Raises:
        RecipeError: there is none.
    """
    sides: Sequence[int] = ()
    if source.generates:
        _, spec = read_spec(source.export)
        sides = tuple(getattr(spec, "patch_nums", ()))  # of a model whose tokens lie in scales
    found = {}
    for graph in source.planned.graphs:
        own = [site for site in planned if site.graph == graph]
        if own and graph in feeds.runs:
            found[graph] = QuantizedGraph(
                source.export,
                quantized,
                graph,
                source.planned.of_graph(graph),
                own,
                entries,
                feeds,
                most,
                sides,
                threads,
            )
    if not found:
        missing = "; ".join(feeds.unfed.values()) or "no graph has a quantized site"
        raise RecipeError(f"nothing can be measured: {missing}", do="quantize a site first")
    return found


def unmeasured(site_map: SiteMap, planned: Sequence[Site], feeds: SavedFeeds) -> dict[str, str]:
    """Return why graphs with quantized sites were not measured."""
    quantized = {site.graph for site in planned}
    return {
        graph: feeds.unfed.get(graph, "no sample feeds it")
        for graph in site_map.graphs
        if graph in quantized and graph not in feeds.runs
    }


def quantize_by(
    source: Calibrated, plan: Plan, options: QuantizeOptions, folder: Path, reporter: Reporter
) -> None:
    """Write what a plan makes, as `quantize --plan` does."""
    from ..quantize.write import write_quantized

    entries, caches = check_plan(plan, source.planned), plan.caches or ()
    write_quantized(source, entries, options, folder, reporter, caches=caches)
