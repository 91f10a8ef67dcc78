"""Which linears cannot have their weights in blocks, said before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..errors import RecipeError
from ..graph.sites import Site
from ..numerics.scheme import SitePlan
from .ranges import site_weight


def require_blocks(graph: ir.Graph, sites: Sequence[Site], entries: Mapping[str, SitePlan]) -> None:
    """Raises RecipeError for weights whose input channels no number of blocks covers."""
    odd = []
    for site in sites:
        weight = entries[site.name].weight if site.name in entries else None
        if weight is not None and weight.block is not None:
            channels = site_weight(graph, site).shape[1]
            if channels % weight.block:
                odd.append(f"{site.name} ({channels} input channels, blocks of {weight.block})")
    if odd:
        raise RecipeError(
            f"{len(odd)} sites cannot take their blocks: {', '.join(odd[:5])}",
            do="use a smaller block_size, or exclude them",
        )
