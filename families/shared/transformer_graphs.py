"""Save the graphs of a transformer, with the sites that its family declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from ...export.sites import linear_sites
from ...export.weight_file import WeightFile
from ...graph.sites import ProducerFold, Site
from ...runtime.generator import TEACHER_FORCED

POSITIONS = "position_ids"


@dataclass(frozen=True, slots=True)
class SiteRules:
    """Hold what a family says of its linears, by module path.

    `token_axis` answers for a role. `excluded` says for a graph which linears are left out, and
    why.
    """

    role: Callable[[str], str]
    fold: Callable[[str], ProducerFold | None]
    token_axis: Mapping[str, int]
    excluded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def write_transformer(
    graphs: Iterable[tuple[str, ir.Model]],
    rules: SiteRules,
    weights: WeightFile,
    properties: dict[str, str],
) -> tuple[Site, ...]:
    """Save every graph under its name, one at a time; return their sites.

    Positions are those of the input `position_ids`, where a graph has it.
    """
    sites: tuple[Site, ...] = ()
    for name, graph in graphs:
        inputs = {value.name for value in graph.graph.inputs}
        sites += linear_sites(
            graph.graph,
            name,
            role=rules.role,
            fold=rules.fold,
            excluded=rules.excluded.get(name, {}),
            token_axis=rules.token_axis,
            position_input=POSITIONS if POSITIONS in inputs else None,
            of_all_positions=name == TEACHER_FORCED,
        )
        weights.save(graph, name, properties)
    return sites
