"""Find the tensors of Q/DQ graphs that would overflow in half precision.

Float16 ends at 65504, and calibration does not see every input: what comes within a quarter of it
is told. A quantized linear whose product does, before the channels' factor, is to stay in high
precision; any other tensor is to stay in FP32 in the FP16 copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import onnx
import onnx_ir as ir

from ..calibrate.calibrated import Calibrated
from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.absmax import keep_absmax, observe_absmax
from ..calibrate.observers.run import Outputs, Progress, require_finite
from ..graph.io import graph_bytes, load_graph
from ..graph.sites import Site, SiteMap
from ..numerics.scheme import Plan, SitePlan
from ..runtime.folders import read_spec
from ..runtime.generator import OTHER_GRAPHS, Generator, choose_sampling, default_session
from ..runtime.sessions.open import SLOW_OPTIMIZERS, open_session
from ..runtime.sessions.placement import ON_CPU
from ..runtime.sessions.session import Array, DeviceValue, Session, SessionObserver
from ..samples.files import Arrays
from ..workspace.manifest import MANIFEST, Manifest
from ..workspace.stage import Reporter
from ..workspace.workspace import Workspace
from .facts import OverflowTensor, SiteRow

LIMIT = 65504 / 4
SAMPLES = 16  # that are run: one pass over the Q/DQ graph
REDUCTIONS = frozenset({"ReduceMean", "ReduceSum"})

OVERFLOW_RISK = (
    "its product reaches {:.4g} in front of the channel factor, too near float16's 65504"
)

LABEL = 0
# A MAR makes latents of the same size in fewer passes than its own.
MOST_PASSES = 8

Absmax = dict[str, dict[str, float]]
Make = Callable[[Mapping[str, SitePlan]], tuple[Plan, list[SiteRow]]]


def quantize_in_range(
    make: Make,
    run: CalibrationRun,
    site_map: SiteMap,
    entries: Mapping[str, SitePlan],
) -> tuple[Plan, list[SiteRow], list[OverflowTensor]]:
    """Return what `make` writes by the plan `entries`, without sites that overflow in float16.

    Those stay in high precision, with the reason in the plan. `run` is of the graphs that `make`
    writes. Also returns their tensors that have to be FP32 in a half-precision copy.
    """
    run = run.of(slice(SAMPLES))
    plan, results = make(entries)
    absmax = run.absmax()
    risky: dict[str, float] = {}
    for name in run.graphs:
        graph = load_graph(run.export / f"{name}.onnx").graph
        risky |= overflowing(graph, site_map.of_graph(name), entries, absmax[name])
    if risky:
        high = {
            name: SitePlan(name=name, reason=OVERFLOW_RISK.format(v)) for name, v in risky.items()
        }
        plan, results = make({**entries, **high})
        absmax = run.absmax()
    return plan, results, overflow_tensors(run.export, absmax)


def overflowing(
    graph: ir.Graph,
    sites: Sequence[Site],
    entries: Mapping[str, SitePlan],
    absmax: dict[str, float],
) -> dict[str, float]:
    """Return the sites whose product passes the limit in front of its channel factor."""
    products = {str(node.name): str(node.outputs[0].name) for node in graph}
    found = {}
    for site in sites:
        entry = entries.get(site.name)
        if entry is None or entry.activation is None or site.weight is None or site.op == "Conv":
            continue
        reached = absmax.get(products.get(site.node, ""), 0.0)
        if not reached <= LIMIT:
            found[site.name] = reached
    return found


def overflow_tensors(folder: Path, absmax: Absmax) -> list[OverflowTensor]:
    """Return tensors of the graphs in `folder` beyond the limit, in graph order."""
    found = []
    for name, by_tensor in absmax.items():
        graph = load_graph(folder / f"{name}.onnx").graph
        for node in graph:
            for value in node.outputs:
                reached = by_tensor.get(str(value.name), 0.0)
                users = {user for user, _ in value.uses()}
                if not reached <= LIMIT and not is_square(node, users):
                    names = (str(n.name) for n in (node, *sorted(users, key=lambda n: str(n.name))))
                    found.append(
                        OverflowTensor(
                            graph=name, tensor=str(value.name), max=reached, nodes=tuple(names)
                        )
                    )
    return found


def is_square(node: ir.Node, users: set[ir.Node]) -> bool:
    """Return whether a node makes squares that only sums read: those stay in FP32 anyway."""
    itself = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    squares = itself or node.op_type == "Pow"
    return squares and bool(users) and {user.op_type for user in users} <= REDUCTIONS


def fp32_nodes(listed: Iterable[OverflowTensor], model: onnx.ModelProto) -> list[str]:
    """Return nodes of `model` that make or read a listed tensor.

    They are found by name: the graphs of a model call the nodes of one module alike.
    """
    names = {name for tensor in listed for name in tensor.nodes}
    return [node.name for node in model.graph.node if node.name in names]


def find_calibration(workspace: Workspace, reporter: Reporter) -> Manifest | None:
    """Return the calibration's manifest, or warn that overflow cannot be known without one."""
    if not (workspace.folder("calibrate") / MANIFEST).is_file():
        reporter.warn(
            "not calibrated: whether the unquantized graphs overflow in FP16 is not known"
        )
        return None
    return workspace.manifest("calibrate", stage="calibrate")


def unquantized_overflow_tensors(workspace: Workspace, reporter: Reporter) -> list[OverflowTensor]:
    """Return the overflow risks of the FP32 graphs, as a quantization's manifest lists its own.

    Raises:
        CalibrationError: statistics of another export, or a value that is not finite.
    """
    source = Calibrated.open(workspace)
    run = source.run(reporter.progress).of(slice(SAMPLES))
    found = overflow_tensors(source.export, run.absmax())
    if source.generates:
        found += unplanned_overflow_tensors(source, source.split[0], reporter)
    return found


def unplanned_overflow_tensors(
    source: Calibrated, planned: SiteMap, reporter: Reporter
) -> list[OverflowTensor]:
    """Return the overflow risks of graphs that the plan of a map does not change."""
    site_map = msgspec.structs.replace(source.site_map, graphs=planned.graphs)
    absmax = collect_loop_absmax(source.export, site_map, progress=reporter.progress)
    return overflow_tensors(source.export, absmax)


def collect_loop_absmax(export: Path, site_map: SiteMap, *, progress: Progress) -> Absmax:
    """Return max |x| of the float tensors of graphs that no sample feeds, by graph and tensor.

    Of those with sites that no plan names, while the model makes a picture.

    Raises:
        CalibrationError: a value that is not finite.
    """
    planned = {site.name for site in site_map.calibrated.sites}
    others = {site.graph for site in site_map.sites if site.name not in planned}
    found = {path.stem for path in export.glob("*.onnx")}
    watched = (found & others) - set(site_map.graphs) - set(OTHER_GRAPHS)
    absmax: Absmax = {graph: {} for graph in sorted(watched)}

    _, spec = read_spec(export)
    plain, passes = default_session(spec), choose_sampling(spec).iterations

    def opened(path: Path, threads: int) -> Session:
        watching = path.stem in absmax
        return AbsmaxSession(path, absmax[path.stem]) if watching else plain(path, threads, ON_CPU)

    Generator.open(export, session=opened, verify=False).generate(
        [LABEL],
        iterations=passes and min(passes, MOST_PASSES),
        progress=lambda done, total: progress("ranges of other graphs", done, total),
    )
    return absmax


class AbsmaxSession(SessionObserver):
    """Run a graph and keep in `absmax` the largest magnitude of each tensor.

    Its runs return the graph's own outputs alone: a loop takes others of a step for caches.
    """

    def __init__(self, path: Path, absmax: dict[str, float]) -> None:
        model = load_graph(path)
        self._own = [str(value.name) for value in model.graph.outputs]
        observe_absmax(model.graph)
        super().__init__(
            open_session(
                path, optimized=True, lean=True, graph=graph_bytes(model), disabled=SLOW_OPTIMIZERS
            )
        )
        self._absmax = absmax

    def run(self, feeds: Arrays, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        found = super().run(feeds)
        self._keep(found)
        return {name: found[name] for name in self._own}

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        found = super().run_on_device(feeds, host)
        self._keep({name: value.numpy() for name, value in found.items()})
        return {name: found[name] for name in self._own}

    def _keep(self, outputs: Outputs) -> None:
        require_finite(outputs, ["a picture of its own"], self.path.stem)
        keep_absmax(self._absmax, outputs)
