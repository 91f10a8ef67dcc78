"""Prove from OpenVINO's own list of layers which sites of a graph compute in integers.

A layer is called after the nodes that were fused into it, and names the kernel that ran:
`brgconv_avx512_amx_i8` multiplies integers, `brgemm_avx512_f32` floats, whatever type the layer
says that its inputs have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ..facts import SiteException

PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
INTEGER = re.compile(r"_[iu]8\Z", re.IGNORECASE)  # `brgconv_avx512_I8` on some processors
NOT_RUN = re.compile(r"\A(undef|unknown)")
BIASLESS = "/WithoutBiases"  # of a convolution whose bias became a layer of its own, then fused
# What may be fused behind a product, and gives the layer its name.
FUSED = frozenset({"Add", "Cast", "Div", "Mul", "Relu", "Reshape", "Sigmoid", "Sub", "Transpose"})
Layer = Mapping[str, str]


def unproved(
    layers: Sequence[Layer], graph: ir.Graph, planned: Sequence[str]
) -> tuple[SiteException, ...]:
    """Return the planned sites, by their nodes' names, that no kernel for integers computes."""
    kernels: dict[str, list[str]] = {}
    for layer in layers:
        if layer["layerType"] in PRODUCTS:
            for name in layer["originalLayersNames"].split(","):
                kernels.setdefault(name.removesuffix(BIASLESS), []).append(layer["primitiveType"])
    nodes = {str(node.name): node for node in graph}
    found = []
    for name in planned:
        names = [name, *names_behind(nodes[name])]
        kernel = next((k for each in names for k in kernels.get(each, ())), None)
        if kernel is None or not INTEGER.search(kernel):
            found.append(SiteException(site=name, reason=reason(kernel)))
    return tuple(found)


def reason(kernel: str | None) -> str:
    if kernel is None:
        return "OpenVINO's list of layers does not name it"
    if NOT_RUN.match(kernel):
        return "no sample ran it, so that no kernel was chosen"
    return f"OpenVINO computes it in {kernel}"


def names_behind(node: ir.Node) -> list[str]:
    """Return the names of what may be fused behind a product, up to where its output forks."""
    names: list[str] = []
    while len(node.outputs) == 1:
        consumers = {consumer for consumer, _ in node.outputs[0].uses()}
        if len(consumers) != 1:
            break
        (node,) = consumers
        if node.op_type not in FUSED:
            break
        names.append(str(node.name))
    return names
