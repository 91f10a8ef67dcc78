"""Judges each node of an ONNX file on each target before anything is built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from ..errors import ArvgError
from ..graph.sites import NodeVerdict, Site, Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..engines.tensorrt.targets import Target

ONNXRUNTIME = "onnxruntime"
# One GPU of each kind: without INT8 convolutions, with them, with FP8.
TARGETS = ("sm75", "sm86", "sm89", "sm120")


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


def resolve_targets(names: Sequence[str]) -> list[Target]:
    from ..engines.tensorrt.targets import resolve_target

    return [resolve_target(name, "tensorrt_rtx") for name in names if name != ONNXRUNTIME]


def analyze_file(path: Path, targets: Sequence[Target]) -> GraphAnalysis:
    """Read the file as `export onnx` does, and judge its nodes."""
    from ..families.custom.graph import read_own_graph
    from ..families.custom.parity import blamed_on_file, open_original
    from ..families.custom.sites import find_own_sites

    try:
        with blamed_on_file(path):
            model = read_own_graph(path)
        open_original(path)
    except ArvgError as error:
        return GraphAnalysis(file=str(path), graph=path.stem, refused=error.what)
    sites = find_own_sites(model.graph, path.stem)
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


def node_verdicts(
    graph: ir.Graph, name: str, sites: Sequence[Site], targets: Sequence[Target]
) -> tuple[NodeVerdict, ...]:
    """Judge every product, and every other node with something in its way, in graph order."""
    from ..engines.tensorrt.operators import DRAWS, RANDOM, build_obstacle, opset_obstacle

    by_node = {site.node: site for site in sites}
    whole = opset_obstacle(graph.opset_imports[""])
    found = []
    for node in graph.all_nodes():
        site = by_node.get(str(node.name))
        obstacle = build_obstacle(node) or whole
        note = DRAWS if node.op_type in RANDOM and not node.domain else None
        if site is None and obstacle is None and note is None:
            continue
        excluded = None if site is None else site.excluded
        found.append(
            NodeVerdict(
                graph=name,
                node=str(node.name),
                op=node.op_type,
                domain=node.domain,
                targets={
                    ONNXRUNTIME: verdict_of(site, None),
                    **{
                        target.sm: "not buildable" if obstacle else verdict_of(site, target)
                        for target in targets
                    },
                },
                reason=obstacle or excluded or note,
            )
        )
    return tuple(found)


def verdict_of(site: Site | None, target: Target | None) -> Verdict:
    """The formats a node may have on a GPU, or with None in ONNX Runtime on a CPU."""
    if site is None or site.excluded is not None:
        return "high precision"
    if target is None:
        return "INT8"
    kernel: Literal["int8_conv", "int8_gemm"] = "int8_conv" if site.op == "Conv" else "int8_gemm"
    int8, fp8 = target.supports(kernel), target.supports("fp8")
    if int8 and fp8:
        return "INT8 or FP8"
    return "INT8" if int8 else "FP8" if fp8 else "high precision"


def count_verdicts(
    verdicts: Sequence[NodeVerdict], nodes: int, targets: Sequence[Target]
) -> dict[str, dict[Verdict, int]]:
    """Nodes by target and verdict; those without one of their own are in high precision."""
    found: dict[str, dict[Verdict, int]] = {}
    for target in (ONNXRUNTIME, *(target.sm for target in targets)):
        counts = Counter(verdict.targets[target] for verdict in verdicts)
        counts["high precision"] += max(0, nodes - len(verdicts))
        found[target] = dict(counts)
    return found
