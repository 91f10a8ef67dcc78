"""Each node of an ONNX file judged on each target, before anything is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..errors import ArvgError
from ..graph.sites import NodeVerdict, Verdict
from .verdicts import ONNXRUNTIME, node_verdicts, resolve_targets

if TYPE_CHECKING:
    from .tensorrt.targets import Target


class GraphAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts on the products of a graph, and on other nodes that a target cannot take.

    `counts` has the nodes of the whole graph by target and verdict. `refused` says why a file
    cannot be exported at all.
    """

    file: str
    graph: str
    opset: int | None = None
    nodes: int = 0
    verdicts: tuple[NodeVerdict, ...] = ()
    counts: dict[str, dict[Verdict, int]] = {}
    refused: str | None = None


def analyze_files(files: Sequence[Path], targets: Sequence[str]) -> list[GraphAnalysis]:
    """Analyze each file by itself; one that cannot be exported does not stop the others.

    Raises:
        BuildError: an unknown target.
    """
    found = resolve_targets(targets)
    return [analyze_file(path, found) for path in files]


def analyze_file(path: Path, targets: Sequence[Target]) -> GraphAnalysis:
    """Read the file as `export onnx` does, and judge its nodes."""
    from ..families.custom.canonical import read_custom_graph
    from ..families.custom.parity import blamed_on_file, open_original
    from ..families.custom.sites import find_custom_sites

    if path.is_dir():
        refused = "is a folder: name the ONNX files in it"
        return GraphAnalysis(file=str(path), graph=path.stem, refused=refused)
    try:
        with blamed_on_file(path):
            model = read_custom_graph(path)
        open_original(path)
    except ArvgError as error:
        return GraphAnalysis(file=str(path), graph=path.stem, refused=error.what)
    sites = find_custom_sites(model.graph, path.stem)
    verdicts = node_verdicts(model.graph, path.stem, sites, targets)
    nodes = sum(1 for _ in model.graph)
    return GraphAnalysis(
        file=str(path),
        graph=path.stem,
        opset=model.graph.opset_imports[""],
        nodes=nodes,
        verdicts=verdicts,
        counts=count_verdicts(verdicts, nodes, targets),
    )


def count_verdicts(
    verdicts: Sequence[NodeVerdict], nodes: int, targets: Sequence[Target]
) -> dict[str, dict[Verdict, int]]:
    """Count nodes by target and verdict; those without one of their own are in high precision."""
    found: dict[str, dict[Verdict, int]] = {}
    for target in (ONNXRUNTIME, *(target.sm for target in targets)):
        counts = Counter(verdict.targets[target] for verdict in verdicts)
        counts["high precision"] += max(0, nodes - len(verdicts))
        found[target] = dict(counts)
    return found
