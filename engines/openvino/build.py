"""Build the OpenVINO engine: the Q/DQ graphs as they are, and what they compile to here.

Each graph runs before it is kept: it is compared with the same graph in the reference session, and
the kernels that ran say which sites compute in integers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import BuildError, BundleError
from ...graph.io import read_graph
from ...graph.sites import SiteMap, load_sites
from ...graph.weight_file import WEIGHTS
from ...numerics.scheme import Plan, SitePlan
from ...runtime.families import SPEC_FILE
from ...runtime.generator import OTHER_GRAPHS, TEACHER_FORCED
from ...runtime.sessions.openvino import (
    OpenVinoSession,
    Precision,
    openvino_version,
    short_version,
)
from ...runtime.sessions.openvino_files import RECORD, CompiledGraph, CompiledGraphs, blob_path
from ...runtime.sessions.processors import processor_name
from ...samples.files import sample_files
from ...workspace.facts import Exported
from ...workspace.files import atomic_write, encode_json
from ...workspace.stage import Reporter
from ..facts import EXECUTED, EngineRow, SiteException
from ..formats import precision_text
from ..onnxruntime.build import CHECKING
from ..onnxruntime.check import CHECK_SAMPLES, check_engine
from ..onnxruntime.generator import check_loop, check_runs
from ..site_names import grouped_names
from .proof import unproved
from .refusals import node_text

COMPILING = "compiling with OpenVINO"
TITLE = "OpenVINO"


@dataclass(frozen=True, slots=True)
class OpenedGraphs:
    """Open each graph of a folder once, so that what was run is what is proved and kept.

    `in_float` says of graphs that are computed in floats why they are.
    """

    precision: Precision
    in_float: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, OpenVinoSession] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, path: Path, threads: int) -> OpenVinoSession:
        if path.stem not in self.sessions:
            start = time.perf_counter()
            self.sessions[path.stem] = OpenVinoSession(
                path, threads, precision=self.precision, in_float=path.stem in self.in_float
            )
            self.seconds[path.stem] = time.perf_counter() - start
        return self.sessions[path.stem]

    def leave_in_float(self, graph: str, why: str) -> None:
        """Compute a graph in floats from its next opening on."""
        self.in_float[graph] = why
        del self.sessions[graph]


def build_openvino(
    model: Exported,
    source: Path,
    plan: Plan,
    calibration: Path,
    folder: Path,
    precision: Precision,
    reporter: Reporter,
) -> tuple[EngineRow, ...]:
    """Copy the Q/DQ graphs of `source` to `folder`, compile them, check them, keep their blobs.

    Raises:
        BuildError: OpenVINO refuses a graph, this processor lacks the precision, no site computes
            in integers, or the engine is further from its Q/DQ graphs than rounding explains.
    """
    site_map = load_sites(model.folder)
    generates = model.kind == "generator"
    graphs = generator_graphs(source) if generates else list(site_map.graphs)
    copy_graphs(source, folder, graphs)
    opened = OpenedGraphs(precision)
    for k, graph in enumerate(graphs):
        reporter.progress(COMPILING, k, len(graphs) + 1)
        open_graph(opened, folder / f"{graph}.onnx")
    reporter.progress(CHECKING, len(graphs), len(graphs) + 1)
    check(source, model, folder, calibration / "samples", graphs, opened, reporter)
    rows = [engine_row(folder, graph, plan, site_map, opened) for graph in graphs]
    require_integers(rows)
    write_blobs(folder, opened)
    reporter.progress(CHECKING, len(graphs) + 1, len(graphs) + 1)
    return tuple(rows)


def generator_graphs(source: Path) -> list[str]:
    """Return the graphs that generate, and the teacher-forced one for accuracy."""
    found = {path.stem for path in source.glob("*.onnx")}
    return sorted(found - set(OTHER_GRAPHS) | found & {TEACHER_FORCED})


def copy_graphs(source: Path, folder: Path, graphs: Sequence[str]) -> None:
    """Copy graphs, the weights beside them, and what a generator says of itself."""
    names = [f"{graph}.onnx" for graph in graphs]
    weights = [path.name for path in source.glob("*.onnx.data")]
    shared = [name for name in weights if name.removesuffix(".data") not in names]
    if len(shared) == len(weights):
        names += shared
    else:
        names += [name for name in weights if name not in shared]
    for name in (*names, SPEC_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def open_graph(opened: OpenedGraphs, path: Path) -> None:
    """Compile a graph.

    Raises:
        BuildError: OpenVINO refuses it; the first node that it does not take is named.
    """
    try:
        session = opened(path, 0)
    except BundleError as error:
        where = node_text(path, error.what)
        raise BuildError(
            f"{where}{error.what}", where=path.name, do="build with --backend onnxruntime"
        ) from error
    wanted, found = opened.precision, session.computes_in
    if found != wanted:
        raise BuildError(
            f"this processor computes in {found}, not in {wanted}",
            where=processor_name(),
            do="build without --half bfloat16",
        )


def check(
    source: Path,
    model: Exported,
    folder: Path,
    samples: Path,
    graphs: Sequence[str],
    opened: OpenedGraphs,
    reporter: Reporter,
) -> None:
    """Compare the engine with its Q/DQ graphs on samples of the calibration, all of it run.

    A graph that is too far from its Q/DQ graph is computed in floats from then on: OpenVINO
    2026.4.1 folds a scale that differs by token, where it is a constant, into INT8 products as if
    it differed by channel.

    Raises:
        BuildError: an output is too far from the Q/DQ graph's, also in floats.
    """
    while True:
        try:
            compare(source, model, folder, samples, graphs, opened)
            return
        except BuildError as error:
            graph = Path(error.where or "").stem
            if graph not in opened.sessions or graph in opened.in_float:
                raise
            reporter.warn(f"{graph} is computed in floats: in integers {error.what}")
            opened.leave_in_float(graph, error.what)


def compare(
    source: Path,
    model: Exported,
    folder: Path,
    samples: Path,
    graphs: Sequence[str],
    opened: OpenedGraphs,
) -> None:
    """Raise BuildError for an output that is too far from the Q/DQ graph's."""
    few = sample_files(samples)[:CHECK_SAMPLES]
    if model.kind != "generator":
        check_engine(source, model.folder, folder, few, graphs, session=opened, title=TITLE)
        return
    if TEACHER_FORCED in graphs:
        forced = [TEACHER_FORCED]
        check_engine(source, model.folder, folder, few, forced, session=opened, title=TITLE)
    check_runs(source, folder, samples, graphs, session=opened, title=TITLE)
    check_loop(source, folder, session=opened, title=TITLE)


def engine_row(
    folder: Path, graph: str, plan: Plan, site_map: SiteMap, opened: OpenedGraphs
) -> EngineRow:
    """Return a graph's row, with the sites that its kernels do not compute in integers."""
    entries: Mapping[str, SitePlan] = {entry.name: entry for entry in plan.sites}
    sites = [site for site in site_map.of_graph(graph) if site.name in entries]
    inputs = [site.node for site in sites if entries[site.name].activation is not None]
    path = folder / f"{graph}.onnx"
    session = opened.sessions[graph]
    missing = unproved(session.layers(), read_graph(path).graph, inputs)
    if graph in opened.in_float:
        why = f"in float: {opened.in_float[graph]}"
        missing = tuple(SiteException(site=each.site, reason=why) for each in missing)
    half = "bfloat16" if opened.precision == "bf16" else "float32"
    beside = (path.with_name(f"{path.name}.data"), blob_path(path))
    size = path.stat().st_size + sum(each.stat().st_size for each in beside if each.is_file())
    shared = folder / WEIGHTS
    if shared.is_file() and graph == min(opened.sessions):  # all graphs' weights count once
        size += shared.stat().st_size
    return EngineRow(
        backend=f"openvino {short_version(openvino_version())}",
        target="cpu",
        precision=precision_text([entries[site.name] for site in sites], half),
        graph=graph,
        bytes=size,
        build_seconds=opened.seconds[graph],
        int8_sites_planned=len(inputs),
        int8_sites_proved=len(inputs) - len(missing),
        exceptions=missing,
        status=EXECUTED,
    )


def require_integers(rows: Sequence[EngineRow]) -> None:
    """Raise BuildError where sites were planned in integers, and not one computes so."""
    planned = sum(row.int8_sites_planned for row in rows)
    if planned and not sum(row.int8_sites_proved or 0 for row in rows):
        first = next(each for row in rows for each in row.exceptions)
        names = grouped_names([each.site for row in rows for each in row.exceptions])
        raise BuildError(
            f"none of {planned} planned sites computes in integers: {first.reason}",
            where=names,
            do="build with --backend onnxruntime",
        )


def write_blobs(folder: Path, opened: OpenedGraphs) -> None:
    """Write what the graphs compiled to, and by which release and for which processor.

    The teacher-forced graph has all weights a second time and serves accuracy alone, and each graph
    of fixed shapes has all of them: these are compiled when they are opened.
    """
    per_step = sum(name.startswith("step") for name in opened.sessions) > 1
    graphs = {}
    for name, session in opened.sessions.items():
        keep = name != TEACHER_FORCED and not (per_step and name.startswith("step"))
        if keep:
            atomic_write(blob_path(folder / f"{name}.onnx"), session.export_blob())
        graphs[name] = CompiledGraph(
            metadata=dict(session.metadata), has_blob=keep, in_float=name in opened.in_float
        )
    record = CompiledGraphs(
        version=openvino_version(),
        processor=processor_name(),
        precision=opened.precision,
        graphs=graphs,
    )
    atomic_write(folder / RECORD, encode_json(record))
