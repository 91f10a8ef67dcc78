"""Every site of a quantized generator against a float64 simulation from its packed weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.graph.io import load_graph
from arvg_trt.numerics.packing import load_packed_weights
from arvg_trt.numerics.scheme import ActivationFormat

from ..families.generators import TinyGenerator, activations
from .test_generator_formats import e4m3
from .test_shared_graphs import quantize

FORMATS: dict[str, dict] = {
    "w8a8": {"smoothing": "gps"},
    "w6a6": {"smoothing": "gps", "weight_bits": 6, "activation_bits": 6},
    "w8a16": {"activation_bits": 32},
    "w4a16": {"quantize_method": "blockwise", "block_size": 32, "activation_bits": 32},
    "fp8": {"quantize_method": "fp8", "smoothing": "gps"},
    "log2": {
        "quantize_method": "per_channel_log",
        "integer_exponents": True,
        "weight_bits": 4,
    },
}


def chain_source(node: ir.Node, site: str) -> ir.Value:
    """Return what goes into the chain that was inserted in front of a product."""
    value = node.inputs[0]
    assert value is not None
    while (maker := value.producer()) is not None and str(maker.name).startswith(f"{site}/"):
        if maker.name.endswith("input_scale"):  # folded: part of the site's own input
            break
        value = maker.inputs[0]
        assert value is not None
    return value


def chain_result(node: ir.Node, site: str) -> ir.Value:
    """Return what leaves the chain behind it, the bias not yet added."""
    value = node.outputs[0]
    while True:
        users = [u for u, _ in value.uses() if str(u.name).startswith(f"{site}/")]
        own = [u for u in users if "Mul_" in str(u.name) or "Add_offset" in str(u.name)]
        if not own:
            return value
        value = own[0].outputs[0]


def simulated(
    x: np.ndarray, chosen: ActivationFormat | None, tables: dict[str, np.ndarray], site: str
) -> np.ndarray:
    """x on the grid of its positions; the paper's asymmetric integers where they are uniform."""
    if chosen is None:
        return x
    step = np.float64(chosen.scale)
    shift = np.float64(chosen.shift)
    if f"{site}.token_scale" in tables:
        step = tables[f"{site}.token_scale"].astype(np.float64)[:, None]
        shift = tables[f"{site}.token_shift"].astype(np.float64)[:, None]
    if chosen.grid == "fp8":
        return e4m3(x / step) * step
    zero = 2 ** (chosen.bits - 1) - shift
    return (np.clip(np.rint(x / step) + zero, 0, 2**chosen.bits - 1) - zero) * step


@pytest.mark.parametrize("name", FORMATS)
def test_the_graph_computes_what_the_packed_weights_and_tables_mean(
    tiny_var: TinyGenerator, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "q"
    plan, _ = quantize(tiny_var, folder, **FORMATS[name])
    packed, tables = load_packed_weights(folder / "weights.safetensors")
    entries = {entry.name: entry for entry in plan.sites}
    graph = load_graph(folder / "full.onnx").graph
    nodes = {str(node.name): node for node in graph}
    ends = {}
    for site in tiny_var.full_sites:
        if site.name in packed:
            node = nodes[site.node]
            ends[site.name] = chain_source(node, site.name), chain_result(node, site.name)
    assert len(ends) >= 10
    wanted_tensors = [str(value.name) for pair in ends.values() for value in pair]
    found = activations(folder / "full.onnx", tiny_var.feeds(), wanted_tensors)
    for site, (source, result) in ends.items():
        x, y = found[str(source.name)], found[str(result.name)]
        weight = packed[site].dequantize().astype(np.float64)
        wanted = simulated(x, entries[site].activation, tables, site) @ weight.T
        # A value at a tie may round the other way in float32, which moves a row.
        off = np.abs(y - wanted).max(axis=-1) > 1e-5 * np.abs(wanted).max()
        assert off.mean() < 0.02, site
