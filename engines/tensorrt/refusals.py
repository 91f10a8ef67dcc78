"""Turn a builder's refusal into one line: the node, the reason, and what a user can do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BuildError

if TYPE_CHECKING:
    from .targets import Target

DAMAGED = "run the stage that wrote it again"
BFLOAT16 = "build with --half bfloat16, which has the range of float32"
# Words in a builder's message, with the remedy to suggest; the first match counts.
WAYS_ON = (
    (r"\bmemory\b|\balloc", "free memory, or build with a smaller --image-size and --max-batch"),
    (r"datatypes?: *b16|\bbf(loat)?16\b", "leave out --half bfloat16, or name targets from sm80"),
    (
        r"plugin not found|no importer|unsupported[ _](op|node)|op(erator)? .*not supported",
        "`arvg-trt analyze` lists what each target takes; --backend onnxruntime takes most",
    ),
    (r"overflow|65504|(half|fp16|float16).*range|range.*(half|fp16|float16)", BFLOAT16),
    (r"failed to parse|protobuf", DAMAGED),
)
# As TensorRT's parser writes an error of a node.
_AT_NODE = re.compile(
    r"In node -?\d+ with name: (?P<node>.*?) and operator: (?P<op>\S+) \(\w*\): (?P<why>.*)",
    re.DOTALL,
)


def not_parsed(graph: Path, said: Sequence[str]) -> BuildError:
    """Return the error of a graph that the parser refuses; the first of `said` has the reason."""
    text = said[0] if said else "the parser gave no reason"
    at_node = _AT_NODE.match(text)
    if at_node is None:
        return BuildError(f"cannot be parsed: {one_line(text)}", where=str(graph), do=DAMAGED)
    node, op, why = at_node.groups()
    what = f"cannot be parsed: node {f'{node} ({op})' if node else op}: {one_line(why)}"
    return BuildError(what, where=str(graph), do=way_on(why, computes_in_bfloat16(graph)))


def no_plan(graph: Path, targets: Sequence[Target], said: Sequence[str]) -> BuildError:
    """Return the error of a graph that does not build; the first of `said` has the reason."""
    text = one_line(said[0]) if said else "the builder gave no reason"
    names = ", ".join(target.sm for target in targets)
    return BuildError(
        f"cannot be built for {names}: {text}",
        where=str(graph),
        do=way_on(text, computes_in_bfloat16(graph)),
    )


def way_on(text: str, is_bfloat16: bool) -> str:
    """Return what a user can do about a builder's refusal, by the reason that it gives.

    A graph that already computes in bfloat16 does not get that advice.
    """
    for signs, do in WAYS_ON:
        if re.search(signs, text, re.IGNORECASE) and not (do == BFLOAT16 and is_bfloat16):
            return do
    exclude = "quantize again with --exclude SITE for what it names"
    return exclude if is_bfloat16 else f"{exclude}, or {BFLOAT16}"


def computes_in_bfloat16(graph: Path) -> bool:
    """Return whether a graph that was parsed converts to bfloat16 or holds constants of it."""
    import onnx

    model: Any = onnx.load(graph, load_external_data=False)
    bfloat16 = onnx.TensorProto.BFLOAT16
    return any(t.data_type == bfloat16 for t in model.graph.initializer) or any(
        a.name == "to" and a.i == bfloat16 for node in model.graph.node for a in node.attribute
    )


def one_line(text: str) -> str:
    return " ".join(text.split())
