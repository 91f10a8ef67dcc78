"""Measure what each site adds by itself, at its own output: its input and its weight rounded.

All sites of a part are measured in one run of the FP32 graph: beside each product stands the Q/DQ
graph's, fed the same. Only sums of squares leave the session.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...calibrate.observers.reduce import values_by_name
from ...graph.builder import add_node, constant
from ...graph.io import graph_bytes, load_graph
from ...graph.linears import LINEAR_OPS
from ...graph.sites import Site
from ...quantize.chains import Chain, copy_chain, current_values, find_chain
from ...runtime.sessions.open import open_session
from ...samples.files import Array
from .alignment import AlignedGraph
from .noise import BucketedNoise, buckets_of, numbers_of

MOST_PART = 2**30  # bytes of constants in one changed graph, which holds 2 GB
KINDS = ("output", "input", "weight")


@dataclass(frozen=True, slots=True)
class Alone:
    """Hold the error of a site's output when only this site is quantized.

    `input` and `weight` are that of rounding one of them: what rounding the input adds to the
    rounded weight, and the weight with its input as it is. None: it is not rounded.
    """

    output: BucketedNoise
    input: BucketedNoise | None
    weight: BucketedNoise | None


def quantized_chains(aligned: AlignedGraph, path: Path, sites: Sequence[Site]) -> list[Chain]:
    """Return the chains of sites in a Q/DQ graph."""
    graph = load_graph(path).graph
    return [find_chain(graph, site, aligned.ends[site.name]) for site in sites]


def parts_of(chains: Sequence[Chain], most: int) -> Iterator[list[Chain]]:
    """Split chains, in order, into parts whose constants take `most` bytes, or of a single one."""
    part: list[Chain] = []
    for chain in chains:
        if part and sum(each.nbytes for each in part) + chain.nbytes > most:
            yield part
            part = []
        part.append(chain)
    if part:
        yield part


class AloneMeasurement:
    """A changed FP32 graph that gives sums of squares for some of its sites, fed alike."""

    def __init__(
        self,
        path: Path,
        aligned: AlignedGraph,
        chains: Sequence[Chain],
        sides: Sequence[int] = (),
        threads: int = 0,
    ) -> None:
        self._chains = chains
        graph = aligned.graph
        values = values_by_name(graph)
        graph.outputs.clear()
        numbers = {c.site.position_input for c in chains} - {None, *(v.name for v in graph.inputs)}
        graph.outputs.extend(values[str(name)] for name in sorted(numbers, key=str))
        self.scales: dict[str, dict[str, ir.Value]] = {}
        self._counts: dict[str, int | None] = {}
        for chain in chains:
            self._counts[chain.site.name] = self._observe(aligned, chain)
        self.session = open_session(
            path,
            optimized=False,
            lean=True,
            mapped=True,
            graph=graph_bytes(aligned.model),
            threads=threads,
        )
        self.found = {
            chain.site.name: {
                kind: BucketedNoise(buckets_of(chain.site, self._counts[chain.site.name], sides))
                for kind in kinds_of(chain)
            }
            for chain in chains
        }

    def add(self, feeds: Mapping[str, Array]) -> None:
        """Add one run."""
        outputs = self.session.run(feeds)
        named = {**feeds, **outputs}
        for chain in self._chains:
            name = chain.site.name
            signal = outputs[f"{name}:signal"]
            placed = numbers_of(chain.site, named, signal.shape)
            for kind, total in self.found[name].items():
                total.add(signal, outputs[f"{name}:{kind}"], placed)

    def noise(self, feeds: Mapping[str, Array], scales: Mapping[str, Array]) -> dict[str, float]:
        """Return the square of each site's error in one run, with other scales by their name."""
        names = [f"{chain.site.name}:output" for chain in self._chains]
        outputs = self.session.run({**feeds, **scales}, names)
        return {
            chain.site.name: float(outputs[name].sum(dtype=np.float64))
            for chain, name in zip(self._chains, names, strict=True)
        }

    def result(self) -> dict[str, Alone]:
        """Return the sums of all runs by site."""
        return {
            name: Alone(kinds["output"], kinds.get("input"), kinds.get("weight"))
            for name, kinds in self.found.items()
        }

    def _observe(self, aligned: AlignedGraph, chain: Chain) -> int | None:
        """Add the outputs of one site; returns the number of its positions, where it is fixed."""
        graph, site = aligned.graph, chain.site
        find = current_values(graph)
        name, own = site.name, find(chain.ends.output)
        both = self._copy(graph, chain, f"{name}:alone:", rounds_input=True)
        self.scales[name] = scales_of(graph, both)
        graph.inputs.extend(self.scales[name].values())
        errors = {"output": (both, own)}
        if "weight" in kinds_of(chain):
            weight = both
            if chain.rounded_inputs:
                weight = self._copy(graph, chain, f"{name}:weight:", rounds_input=False)
            errors["weight"] = (weight, own)
            if chain.rounded_inputs:
                errors["input"] = (both, weight)
        elif chain.rounded_inputs:
            errors["input"] = (both, own)
        scaled = aligned.scaled.get(name)
        signal = own if scaled is None else find(f"{name}/aligned_scale:input")
        assert own.shape is not None
        rank = len(own.shape)
        reduced(graph, signal, rank, f"{name}:signal")
        for kind in kinds_of(chain):
            first, second = errors[kind]
            error = add_node(graph, "Sub", [first, second], f"{name}:{kind}/error")
            if scaled is not None:
                shape = (-1,) if site.op in LINEAR_OPS else (-1, 1, 1)
                held = constant(graph, f"{name}:{kind}/scale", scaled.scale.reshape(shape))
                error = add_node(graph, "Mul", [error, held], f"{name}:{kind}/unscaled")
            reduced(graph, error, rank, f"{name}:{kind}")
        tokens = own.shape[1] if rank == 3 else None
        return tokens if isinstance(tokens, int) else None

    def _copy(self, graph: ir.Graph, chain: Chain, prefix: str, *, rounds_input: bool) -> ir.Value:
        nodes, result = copy_chain(
            chain, prefix, current_values(graph), hold=graph, rounds_input=rounds_input
        )
        graph.extend(nodes)
        return result


def scales_of(graph: ir.Graph, output: ir.Value) -> dict[str, ir.Value]:
    """Return the scales of a copied chain that ends in `output`: of its inputs, of its weight.

    They are called input, or input 1 and input 2, and weight.
    """
    inputs: list[ir.Value] = []
    found: dict[str, ir.Value] = {}
    prefix = str(output.name).partition(":alone:")[0] + ":alone:"
    for node in graph:
        if not str(node.name).startswith(prefix) or len(node.inputs) < 2:
            continue
        data, scale = node.inputs[:2]
        if scale is None or not scale.is_initializer() or data is None:
            continue
        if node.op_type == "QuantizeLinear":
            inputs.append(scale)
        elif node.op_type == "DequantizeLinear" and data.is_initializer():
            found["weight"] = scale
    for number, scale in enumerate(inputs, start=1):
        found["input" if len(inputs) == 1 else f"input {number}"] = scale
    return found


def kinds_of(chain: Chain) -> tuple[str, ...]:
    """Return what of a site is rounded, beside its output."""
    found = ["output"]
    found += ["input"] if chain.rounded_inputs else []
    found += ["weight"] if chain.site.weight is not None else []
    return tuple(found)


def reduced(graph: ir.Graph, value: ir.Value, rank: int, output: str) -> None:
    """Make an output of the sums of squares over the last axes, until two are left.

    One axis at a time: long float32 sums of ONNX Runtime are wrong by 1e-4 and more. Of rows [N, C]
    one is left.
    """
    value = add_node(graph, "Mul", [value, value], f"{output}/squares")
    axes = [k for k in reversed(range(rank)) if k >= (2 if rank > 2 else 1)]
    for number, axis in enumerate(axes):
        last = number == len(axes) - 1
        held = constant(graph, f"{output}/axis{axis}", np.array([axis], np.int64))
        label = output if last else f"{output}/{axis}"
        value = add_node(graph, "ReduceSum", [value, held], label, keepdims=0)
    if not axes:
        value = add_node(graph, "Identity", [value], output)
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([None] * (rank - len(axes)))
    graph.outputs.append(value)
