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

ENCODER_POSITION_IDS, DECODER_POSITION_IDS = "encoder_places", "decoder_places"
UNKNOWN_POSITION_IDS = "unknown_places"
# All rows of a run of the denoiser have the same time, and so the same one of these scales.
TIME_POSITION_ID, TIME_POSITIONS = "time_place", 20


def add_position_ids(graph: ir.Graph, buffer: int, length: int) -> None:
    """Add the position ids of the encoder, the decoder and the unknown tokens.

    `ENCODER_POSITION_IDS` are [rows, b + n], `DECODER_POSITION_IDS` [rows, b + L],
    `UNKNOWN_POSITION_IDS` [rows, L - n]. The last are in the raster. In the others the buffer's
    rows are 0 to b - 1, a known token's is b + its place in the raster, an unknown one's,
    another vector there, is L more.
    """
    _, tokens, position_ids = graph.inputs
    made: list[ir.Node] = []

    def numbers_constant(name: str, *numbers: int) -> ir.Value:
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
    sizes = add("Concat", [rows, numbers_constant("buffer", buffer)], "places.sizes", [2], axis=0)
    first = add(
        "Expand", [numbers_constant("first", *range(buffer)), sizes], "places.0", ["rows", buffer]
    )
    zero, axis, end = (
        numbers_constant("zero", 0),
        numbers_constant("axis", 1),
        numbers_constant("end", length),
    )
    known = add("Slice", [position_ids, zero, count, axis], "places.1", ["rows", "n"])
    known = add("Add", [known, numbers_constant("known", buffer)], "places.2", ["rows", "n"])
    left = f"{length} - n"
    unknown = add("Slice", [position_ids, count, end, axis], UNKNOWN_POSITION_IDS, ["rows", left])
    unknown = add(
        "Add", [unknown, numbers_constant("unknown", buffer + length)], "places.4", ["rows", left]
    )
    add("Concat", [first, known], ENCODER_POSITION_IDS, ["rows", f"{buffer} + n"], axis=1)
    add("Concat", [first, known, unknown], DECODER_POSITION_IDS, ["rows", buffer + length], axis=1)
    graph.insert_before(graph[0], made)


def numbered(site: Site, config: MarConfig) -> Site:
    """Return the site with its rows' position ids; the last block projects unknown tokens alone."""
    if site.token_axis is None:
        return site
    buffer, length = config.buffer, config.length
    last = site.name.startswith(f"decoder_blocks.{config.decoder_depth - 1}.")
    if site.name.startswith("encoder"):
        position_input, positions = ENCODER_POSITION_IDS, buffer + length
    elif last and site.role != "qkv":
        position_input, positions = UNKNOWN_POSITION_IDS, length
    else:
        position_input, positions = DECODER_POSITION_IDS, buffer + 2 * length
    return msgspec.structs.replace(site, position_input=position_input, positions=positions)


def add_time_position(graph: ir.Graph) -> None:
    """Make `TIME_POSITION_ID` [1] of the denoiser: which of as many like parts its time is in."""
    held = constant(graph, "places.width", np.array([TIMES // TIME_POSITIONS], np.int64))
    node = ir.node("Div", [graph.inputs[1], held], name=f"places/{TIME_POSITION_ID}")
    value = node.outputs[0]
    value.name, value.type, value.shape = TIME_POSITION_ID, held.type, held.shape
    graph.insert_before(graph[0], node)
