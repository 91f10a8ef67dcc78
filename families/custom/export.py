"""Stage 1 for a user's own model: ONNX files -> canonical graphs and the sites found in them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError, bounded
from ...graph.sites import SITES_VERSION, NodeVerdict, Site, SiteMap
from ...recipe.base import check_name
from ...workspace.facts import GraphFacts, ValueFacts
from ...workspace.files import encode_json, sha256_file
from ...workspace.manifest import Manifest
from ...workspace.stage import PreparedStage, Reporter, package_versions
from ...workspace.workspace import Workspace
from . import MODEL

if TYPE_CHECKING:
    import onnx_ir as ir

    from .parity import CustomParity

FOLD_SEED = 2  # of what folds are tried with; the files were compared on others

# The array of each input by graph.
Fed = Mapping[str, Mapping[str, NDArray[np.generic]]]


@dataclass(frozen=True, slots=True)
class Judges:
    """Knowledge that later stages have of exported graphs: they do the folds and the builds.

    `failing_folds` tries the folds of sites on arrays; by the site's name it returns the decibels
    that those which do not hold keep. `verdicts` says what becomes of the nodes of a graph on each
    target.
    """

    failing_folds: Callable[[Path, Fed, Sequence[Site]], dict[str, float]]
    verdicts: Callable[[ir.Graph, str, Sequence[Site]], tuple[NodeVerdict, ...]]


class ParityFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How far each graph is from the user's file."""

    graphs: tuple[CustomParity, ...]


class CustomExportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the export, for its manifest; later stages read the ``graphs``.

    ``refused_folds`` has the decibels of folds that do not hold, ``excluded`` the reasons of sites
    that are not quantized, both by site.
    """

    parameters: int
    graphs: tuple[GraphFacts, ...]
    parity: ParityFacts
    refused_folds: dict[str, float]
    excluded: dict[str, str]


def prepare_custom_export(
    workspace: Workspace,
    files: Sequence[Path],
    reporter: Reporter,
    judges: Judges,
    title: str | None = None,
) -> PreparedStage:
    """Prepare to bring ONNX files into the form of later stages; a graph is named after its file.

    `title` is what the model is called in reports, by default as its graphs are.

    Raises:
        ExportError: files that cannot be read or converted, two of one name, nothing to quantize;
            a title that is no name of a file.
    """
    graphs = graph_names(files)
    if title is not None:
        require_name(title, "--title", "give another title")
    wanted = Manifest(
        stage="export",
        inputs={f"{g}: {path.name}": sha256_file(path) for g, path in graphs.items()}
        | {f"{g}: {p.name}": sha256_file(p) for g, f in graphs.items() for p in beside(f)},
        options={"model": MODEL, "graphs": list(graphs)} | ({"title": title} if title else {}),
        versions=package_versions("onnx", "onnx-ir", "onnxscript", "onnxruntime")
        | {"sites.json": SITES_VERSION},
    )

    def work(folder: Path) -> CustomExportFacts:
        return export_custom(graphs, folder, reporter, judges)

    return PreparedStage(workspace.folder("export"), wanted, work)


def graph_names(files: Sequence[Path]) -> dict[str, Path]:
    """Return files by the name of their graph: the file's, or of two alike the folder's.

    A name becomes one that files of every system can have: `Modell ä.onnx` is `Modell_a`.
    """
    if not files:
        raise ExportError("no graph given", where=MODEL, do="--graph FILE, once for each graph")
    stems = Counter(portable(path.stem) for path in files)
    folders = Counter(folder_name(path) for path in files if stems[portable(path.stem)] > 1)
    found: dict[str, Path] = {}
    for path in files:
        if not path.is_file():
            raise ExportError("no such file", where=str(path), do="name ONNX files after --graph")
        name = portable(path.stem)
        if stems[name] > 1:
            folder = folder_name(path)
            name = folder if folders[folder] == 1 else f"{folder}_{name}"
        if name in found:
            raise ExportError(
                f"two graphs are called {name}",
                where=f"{found[name]}, {path}",
                do="rename one of the files",
            )
        require_name(name, str(path), "rename the file")
        found[name] = path
    return found


def require_name(name: str, where: str, do: str) -> None:
    """Raise ExportError for a name that files cannot have."""
    try:
        check_name(name)
    except ValueError as error:
        raise ExportError(str(error), where=where, do=do) from error


def portable(name: str) -> str:
    """Return a name of ASCII letters, digits, `.`, `_` and `-`, as files of every system have.

    Letters lose their accents; all else becomes `_`.
    """
    plain_letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", plain_letters).lstrip("._-") or "graph"


def folder_name(path: Path) -> str:
    return portable(path.resolve().parent.name)


def beside(file: Path) -> list[Path]:
    """Return the files that hold a graph's weights."""
    from .load import read, weight_files

    return weight_files(read(file))


def export_custom(
    graphs: dict[str, Path], folder: Path, reporter: Reporter, judges: Judges
) -> CustomExportFacts:
    """Write graphs, weights and sites.json; returns the manifest's results."""
    from ...export.weight_file import WeightFile
    from .canonical import read_custom_graph
    from .parity import blamed_on_file, check_custom_graph, learn_ranks, seeded_arrays
    from .sites import find_custom_sites, unknown_ranks

    sites: list[Site] = []
    models: dict[str, ir.Model] = {}
    with WeightFile(folder) as weights:
        for k, (name, path) in enumerate(graphs.items()):
            reporter.progress("reading graphs", k, len(graphs))
            with blamed_on_file(path):
                model = read_custom_graph(path, [site.name for site in sites], name)
            models[name] = model
            properties = {"arvg_trt.model": MODEL, "arvg_trt.family": MODEL}
            unranked = unknown_ranks(model.graph)
            if unranked:
                weights.save(model, name, properties)
                learn_ranks(path, folder / f"{name}.onnx", model, unranked)
            sites += find_custom_sites(model.graph, name)
            weights.save(model, name, properties)
    reporter.progress("reading graphs", len(graphs), len(graphs))
    require_sites(sites)
    parity = []
    for k, (name, path) in enumerate(graphs.items()):
        reporter.progress("comparing with the files", k, len(graphs))
        parity.append(check_custom_graph(path, folder / f"{name}.onnx", models[name]))
    reporter.progress("comparing with the files", len(graphs), len(graphs))
    fed = {p.graph: seeded_arrays(models[p.graph].graph, p.inputs, FOLD_SEED) for p in parity}
    refused = judges.failing_folds(folder, fed, sites)
    sites = without_folds(sites, refused)
    described = [graph_facts(model.graph, name) for name, model in models.items()]
    verdicts = tuple(
        verdict
        for name, model in models.items()
        for verdict in judges.verdicts(model.graph, name, [s for s in sites if s.graph == name])
    )
    warn_unbuildable(verdicts, reporter)
    site_map = SiteMap(sites=tuple(sites), graphs=tuple(graphs), nodes=verdicts)
    (folder / "sites.json").write_bytes(encode_json(site_map))
    return CustomExportFacts(
        parameters=sum(graph.parameters for graph in described),
        graphs=tuple(described),
        parity=ParityFacts(graphs=tuple(parity)),
        refused_folds=refused,
        excluded={s.name: s.excluded for s in sites if s.excluded},
    )


def warn_unbuildable(verdicts: Sequence[NodeVerdict], reporter: Reporter) -> None:
    """Say once what will stop a TensorRT build, while ONNX Runtime's engines can still be made."""
    stopping = [v for v in verdicts if "not buildable" in v.targets.values()]
    if stopping:
        first = stopping[0]
        more = f", and {len(stopping) - 1} more nodes" if len(stopping) > 1 else ""
        reporter.warn(
            f"TensorRT cannot build {first.graph}: {first.node} ({first.op}): {first.reason}{more};"
            " ONNX Runtime engines are not affected"
        )


def without_folds(sites: Sequence[Site], refused: Collection[str]) -> list[Site]:
    """Return the sites; those that read a tensor whose fold is refused have none.

    `refused` names the first site of such a tensor.
    """
    tensors = {(s.graph, s.input) for s in sites if s.name in refused}
    bare = {"fold": None, "producer_fold": None}
    return [
        msgspec.structs.replace(s, **bare) if (s.graph, s.input) in tensors else s for s in sites
    ]


def require_sites(sites: Sequence[Site]) -> None:
    """Raises ExportError where there is nothing to quantize, with the reasons."""
    if any(site.excluded is None for site in sites):
        return
    reasons = Counter(str(site.excluded) for site in sites)
    counted = [f"{count}: {reason}" for reason, count in reasons.most_common()]
    text = bounded(counted, "reasons", separator="; ")
    do = "export a float32 model with its weights as constants"
    if any(" body of a node " in reason for reason in reasons):
        do = "export it without If, Loop and Scan: what decides them as a constant, loops unrolled"
    raise ExportError(
        f"none of {len(sites)} products can be quantized ({text})"
        if sites
        else "the graphs have no Conv, MatMul or Gemm",
        do=do,
    )


def graph_facts(graph: ir.Graph, name: str) -> GraphFacts:
    """Return inputs and outputs for the stages that feed the graph; a dynamic axis has its name."""
    return GraphFacts(
        name=name,
        inputs=tuple(value_facts(value) for value in graph.inputs),
        outputs=tuple(value_facts(value) for value in graph.outputs),
        parameters=sum(
            value.const_value.size
            for value in graph.initializers.values()
            if value.const_value is not None
            and value.dtype is not None
            and value.dtype.is_floating_point()
        ),
    )


def value_facts(value: ir.Value) -> ValueFacts:
    """Return name, type and shape of an input or output, as far as the graph says them."""
    return ValueFacts(
        name=str(value.name),
        dtype="unknown" if value.dtype is None else str(value.dtype.numpy()),
        shape=None if value.shape is None else tuple(axis(d) for d in value.shape),
    )


def axis(dimension: int | ir.SymbolicDim) -> int | str | None:
    """Return the length of a dimension, else its name, None without one."""
    return dimension if isinstance(dimension, int) else dimension.value
