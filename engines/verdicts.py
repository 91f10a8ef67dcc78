"""Judge each node of a graph on each target before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from ..graph.sites import NodeVerdict, Site, Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

    from .tensorrt.targets import Target


ONNXRUNTIME = "onnxruntime"
# One GPU of each kind: without INT8 convolutions, with them, with FP8.
TARGETS = ("sm75", "sm86", "sm89", "sm120")


def resolve_targets(names: Sequence[str]) -> list[Target]:
    from .tensorrt.targets import resolve_target

    return [resolve_target(name, "tensorrt_rtx") for name in names if name != ONNXRUNTIME]


def node_verdicts(
    graph: ir.Graph, name: str, sites: Sequence[Site], targets: Sequence[Target]
) -> tuple[NodeVerdict, ...]:
    """Judge every product, and every other node with something in its way, in graph order."""
    from .tensorrt.operators import DRAWS, RANDOM, build_obstacle, opset_obstacle

    by_node = {site.node: site for site in sites}
    whole = opset_obstacle(graph.opset_imports[""])
    verdicts = []
    for node in graph.all_nodes():
        site = by_node.get(str(node.name))
        obstacle = build_obstacle(node) or whole
        note = DRAWS if node.op_type in RANDOM and not node.domain else None
        if site is None and obstacle is None and note is None:
            continue
        excluded = None if site is None else site.excluded
        verdicts.append(
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
    return tuple(verdicts)


def verdict_of(site: Site | None, target: Target | None) -> Verdict:
    """Return the formats a node may have on a GPU, or with None in ONNX Runtime on a CPU."""
    if site is None or site.excluded is not None:
        return "high precision"
    if target is None:
        return "INT8"
    kernel: Literal["int8_conv", "int8_gemm"] = "int8_conv" if site.op == "Conv" else "int8_gemm"
    int8, fp8 = target.supports(kernel), target.supports("fp8")
    if int8 and fp8:
        return "INT8 or FP8"
    return "INT8" if int8 else "FP8" if fp8 else "high precision"
