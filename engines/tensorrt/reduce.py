"""Find the smallest part of a graph that the builder still refuses.

What `polygraphy debug reduce` does, whose command needs onnx-graphsurgeon: the graph is cut behind
the first node with which it fails, then in front of the last with which it still does, by halving.
Values at the cuts become inputs and outputs; every shape is fixed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BuildError, OutOfMemory
from .products import known_shapes, read_graph, with_fixed_shapes

if TYPE_CHECKING:
    import onnx

    from .build import Profiles

Refusal = Callable[["onnx.ModelProto"], "BuildError | OutOfMemory | None"]


@dataclass(frozen=True, slots=True)
class Reduced:
    """Hold the smallest failing part of a graph of so many nodes, and how it is refused."""

    model: onnx.ModelProto
    nodes: tuple[str, ...]
    of: int
    refusal: BuildError | OutOfMemory


def reduce_failure(graph: Path, profiles: Profiles, refusal: Refusal) -> Reduced | None:
    """Return the smallest part of `graph` that is refused as it is itself; None if it builds.

    `refusal` tries to build a graph, at the best shapes of `profiles`. A part that fails for
    another reason counts as one that builds.

    Raises:
        BuildError: the shape of an input or output does not follow from those, so that nothing can
            be tried.
    """
    import onnx

    shapes = {name: best for name, (_, best, _) in profiles.items()}
    known = values_of(with_fixed_shapes(read_graph(graph), shapes))
    model = onnx.load(graph)
    nodes = list(model.graph.node)
    original = cut_out(model, nodes, known)
    if original is None:
        ends = (*model.graph.input, *model.graph.output)
        name = next((value.name for value in ends if value.name not in known), "a value")
        what = f"the shape of {name} is not known with inputs of fixed shapes: nothing was tried"
        raise BuildError(what, where=str(graph.name), do="export the graph with that shape")
    whole = refusal(original)
    if whole is None:
        return None

    def fails(part: Sequence[onnx.NodeProto]) -> bool:
        cut = cut_out(model, part, known)
        found = None if cut is None else refusal(cut)
        return found is not None and kind_of(found, nodes) == kind_of(whole, nodes)

    part = nodes[: first_true(range(1, len(nodes) + 1), lambda count: fails(nodes[:count]))]
    needed = ancestors(part)
    part = needed if len(needed) < len(part) and fails(needed) else part
    kept = first_true(range(1, len(part) + 1), lambda count: fails(part[-count:]))
    smallest = cut_out(model, part[-kept:], known) or original
    return Reduced(
        model=smallest,
        nodes=tuple(node.name for node in smallest.graph.node),
        of=len(nodes),
        refusal=refusal(smallest) or whole,
    )


def first_true(counts: range, holds: Callable[[int], bool]) -> int:
    """Return the smallest of `counts` that holds, by halving; the last one does."""
    low, high = counts[0], counts[-1]
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def kind_of(refusal: BuildError | OutOfMemory, nodes: Iterable[onnx.NodeProto]) -> str:
    """Return the words of a refusal without names and numbers, which differ between parts."""
    text = refusal.what
    for name in sorted({node.name for node in nodes if node.name}, key=len, reverse=True):
        text = text.replace(name, "")
    return " ".join(re.findall(r"[A-Za-z]{3,}", text))[:80]


def ancestors(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes that the last one needs, itself too, in their order."""
    wanted, kept = {*nodes[-1].input}, [nodes[-1]]
    for node in reversed(nodes[:-1]):
        if wanted & {*node.output}:
            wanted |= {*node.input}
            kept.append(node)
    return kept[::-1]


def values_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Return the type of each value of a graph whose shape is known."""
    from onnx import helper

    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        name: helper.make_tensor_value_info(name, types[name], shape)
        for name, shape in known_shapes(model).items()
    }


def cut_out(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], known: Mapping[str, Any]
) -> onnx.ModelProto | None:
    """Return a graph of some nodes of `model`; None if a value at a cut is not `known`."""
    from onnx import helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {name for node in nodes for name in node.output if name}
    read = dict.fromkeys(name for node in nodes for name in node.input if name)
    inputs = [name for name in read if name not in made and name not in constants]
    final = {value.name for value in model.graph.output}
    outputs = [n for node in nodes for n in node.output if n and (n not in read or n in final)]
    if any(name not in known for name in (*inputs, *outputs)):
        return None
    graph = helper.make_graph(
        list(nodes),
        model.graph.name,
        [known[name] for name in inputs],
        [known[name] for name in outputs],
        [constants[name] for name in read if name in constants],
    )
    return helper.make_model(
        graph,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
    )
