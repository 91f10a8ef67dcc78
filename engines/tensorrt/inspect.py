"""Read from the builder's layer list which sites became INT8 or FP8 kernels.

Needs no GPU. Linears that share an input are merged into one GEMM that carries all their names, so
names are counted, never layers.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

KernelFormat = Literal["int8", "fp8"]

_DATATYPE: dict[KernelFormat, str] = {"int8": "Int8", "fp8": "FP8"}
TABLE_MARK = b"\x2d\x80\x01\x00"  # behind a name in the table of inputs and outputs
_PRODUCTS = ("gemm", "correlation")

_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), "
    r"Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: .*?Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_TENSOR_TYPE = re.compile(r"Datatype: (\w+)")
_CONSTANT = re.compile(r"Name: (.*?), Dimensions: \[([\d,]*)\].*?Datatype: (\w+)")
_BITS = {
    "Int4": 4,
    "FP4": 4,
    "Int8": 8,
    "FP8": 8,
    "Bool": 8,
    "UInt8": 8,
    "Half": 16,
    "BFloat16": 16,
}
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one fused layer of an engine; data types as the builder prints them (Int8, Half).

    ``constant_bytes`` is by the name of each constant, with its type in front: `Int8 w`.
    """

    name: str
    type: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    onnx_nodes: tuple[str, ...]
    constant_bytes: dict[str, int] = {}

    @property
    def is_attention(self) -> bool:
        """Return whether this is one kernel for both products of an attention and the softmax."""
        return "_gemm_mha" in self.name


def parse_layers(text: str) -> tuple[Layer, ...]:
    """Return the layers of a ``Layers:`` message, in order; empty for a text without any."""
    return tuple(
        Layer(
            name=match["name"],
            type=match["type"],
            inputs=tuple(_TENSOR_TYPE.findall(match["inputs"])),
            constants=tuple(_TENSOR_TYPE.findall(match["constants"])),
            outputs=tuple(_TENSOR_TYPE.findall(match["outputs"])),
            onnx_nodes=tuple(_ONNX_NODE.findall(match["metadata"])),
            constant_bytes=dict(map(_sized, _CONSTANT.finditer(match["constants"]))),
        )
        for match in _LAYER.finditer(text)
    )


def _sized(constant: re.Match[str]) -> tuple[str, int]:
    name, sizes, kind = constant.groups()
    count = math.prod(int(size) for size in sizes.split(",") if size)
    bits = 64 if kind == "Int64" else _BITS.get(kind, 32)
    return f"{kind} {name}", -(-count * bits // 8)


def table_order(plan: bytes, names: Sequence[str]) -> tuple[str, ...] | None:
    """Return `names` in the order of a TensorRT for RTX 1.x plan; None where it lacks them.

    An entry has each name with its length of 8 bytes in front, and twice; the first is marked.
    """
    offsets: dict[str, int] = {}
    for name in names:
        text = name.encode()
        offsets[name] = plan.rfind(struct.pack("<Q", len(text)) + text + TABLE_MARK)
    if min(offsets.values(), default=0) < 0:
        return None
    return tuple(sorted(offsets, key=offsets.__getitem__))


def verify_sites(
    layers: Iterable[Layer], planned: Mapping[str, KernelFormat]
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return which planned sites run in their format, and what was found for the others.

    `planned` maps the ONNX node name of a site to its format. A site is proved by a GEMM,
    convolution or fused attention that carries its name and takes all operands in the format.
    """
    carriers: dict[str, list[Layer]] = {site: [] for site in planned}
    for layer in layers:
        for node in dict.fromkeys(layer.onnx_nodes):
            if node in carriers:
                carriers[node].append(layer)
    verified: list[str] = []
    missing: list[tuple[str, str]] = []
    for site, form in planned.items():
        if any(_runs_as(layer, _DATATYPE[form]) for layer in carriers[site]):
            verified.append(site)
        else:
            missing.append((site, _found_instead(carriers[site])))
    return verified, missing


def _runs_as(layer: Layer, datatype: str) -> bool:
    first, *others = layer.inputs or ("",)
    if layer.is_attention:
        return {first, *others} == {datatype}
    # The second operand is a constant weight, or an activation where both are activations.
    return layer.type in _PRODUCTS and first == datatype and datatype in (*layer.constants, *others)


def _found_instead(carriers: Sequence[Layer]) -> str:
    if not carriers:
        return "is not in the engine's layer list"
    products = [layer for layer in carriers if layer.type in _PRODUCTS] or carriers
    kinds = dict.fromkeys(f"{(layer.inputs or ('?',))[0]} {layer.type}" for layer in products)
    return f"runs as {', '.join(kinds)}"
