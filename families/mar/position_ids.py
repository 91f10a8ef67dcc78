"""Add the position ids of a MAR's rows, as values of its graphs.

Rows lie in another order in every image, and the number of known ones grows. A static scale per
token is gathered from its table by these values; the arithmetic of the graphs does not need them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import onnx_ir as ir

from ...graph.builder import constant
from ...graph.sites import Site
from ...runtime.spec import TIMES
from .config import MarConfig

ENCODER_PLACES, DECODER_PLACES = "encoder_places", "decoder_places"
UNKNOWN_PLACES = "unknown_places"
# All rows of a run of the denoiser have one time, and one of that many scales.
TIME_PLACE, TIME_PLACES = "time_place", 20


def add_places(graph: ir.Graph, buffer: int, length: int) -> None:
    """Make `ENCODER_PLACES` [rows, b + n], `DECODER_PLACES` [rows, b + L], `UNKNOWN_PLACES`.

    The last, [rows, L - n], are in the raster. In the others the buffer's rows are 0 to b - 1, a
    known token's is b + its place in the raster, an unknown one's, another vector there, is L more.
    """
    _, tokens, position_ids = graph.inputs
    made: list[ir.Node] = []

    def held(name: str, *numbers: int) -> ir.Value:
        return constant(graph, f"places.{name}", np.array(numbers, np.int64))

    def add(
        op: str, inputs: Sequence[ir.Value], name: str, sizes: Sequence[int | str], **options: int
    ) -> ir.Value:
        node = ir.node(op, inputs, options, name=f"places/{name}")
        value = node.outputs[0]
        value.name, value.type = name, ir.TensorType(ir.DataType.INT64)
        value.shape = ir.Shape(sizes)
        made.append(node)
        return value

    count = add("Shape", [tokens], "places.n", [1], start=1, end=2)
    rows = add("Shape", [position_ids], "places.rows", [1], start=0, end=1)
    sizes = add("Concat", [rows, held("buffer", buffer)], "places.sizes", [2], axis=0)
    first = add("Expand", [held("first", *range(buffer)), sizes], "places.0", ["rows", buffer])
    zero, axis, end = held("zero", 0), held("axis", 1), held("end", length)
    known = add("Slice", [position_ids, zero, count, axis], "places.1", ["rows", "n"])
    known = add("Add", [known, held("known", buffer)], "places.2", ["rows", "n"])
    left = f"{length} - n"
    unknown = add("Slice", [position_ids, count, end, axis], UNKNOWN_PLACES, ["rows", left])
    unknown = add("Add", [unknown, held("unknown", buffer + length)], "places.4", ["rows", left])
    add("Concat", [first, known], ENCODER_PLACES, ["rows", f"{buffer} + n"], axis=1)
    add("Concat", [first, known, unknown], DECODER_PLACES, ["rows", buffer + length], axis=1)
    graph.insert_before(graph[0], made)


def numbered(site: Site, config: MarConfig) -> Site:
    """Return the site with its rows' position ids; the last block projects unknown tokens alone."""
    if site.token_axis is None:
        return site
    buffer, length = config.buffer, config.length
    last = site.name.startswith(f"decoder_blocks.{config.decoder_depth - 1}.")
    if site.name.startswith("encoder"):
        places, positions = ENCODER_PLACES, buffer + length
    elif last and site.role != "qkv":
        places, positions = UNKNOWN_PLACES, length
    else:
        places, positions = DECODER_PLACES, buffer + 2 * length
    return msgspec.structs.replace(site, position_input=places, positions=positions)


def add_time_place(graph: ir.Graph) -> None:
    """Make `TIME_PLACE` [1] of the denoiser: which of as many like parts its time is in."""
    held = constant(graph, "places.width", np.array([TIMES // TIME_PLACES], np.int64))
    node = ir.node("Div", [graph.inputs[1], held], name=f"places/{TIME_PLACE}")
    value = node.outputs[0]
    value.name, value.type, value.shape = TIME_PLACE, held.type, held.shape
    graph.insert_before(graph[0], node)
