"""Write a convolutional network as an ONNX graph, layer by layer, from a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import ExportError
from ...graph.builder import constant
from ...graph.io import graph_bytes
from ...workspace.files import atomic_write
from ...workspace.stage import tool_version

OPSET = 20
Weights = Mapping[str, NDArray[np.float32]]


class Network:
    """Build one graph; every method adds a layer and returns its output."""

    def __init__(self, weights: Weights, where: str) -> None:
        """Take the tensors of the checkpoint `where`, of which errors speak."""
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="network")
        self._weights = weights
        self._where = where
        self.unread = set(weights)  # names that no layer has taken yet

    def images(self, name: str) -> ir.Value:
        """Add an input of uint8 images [N, 3, H, W]; returns its pixels as float32."""
        value = ir.val(name, ir.DataType.UINT8, ["N", 3, "H", "W"])
        self.graph.inputs.append(value)
        return self("Cast", value, to=int(ir.DataType.FLOAT))

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node of one output."""
        node = ir.node(op, inputs, attributes, name=f"{op}_{len(self.graph)}")
        node.outputs[0].name = f"{node.name}:0"
        self.graph.append(node)
        return node.outputs[0]

    def split(self, value: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the two halves of a batch."""
        node = ir.node("Split", [value], {"axis": 0, "num_outputs": 2}, num_outputs=2)
        node.name = f"Split_{len(self.graph)}"
        for k, half in enumerate(node.outputs):
            half.name = f"{node.name}:{k}"
        self.graph.append(node)
        return node.outputs[0], node.outputs[1]

    def constant(self, value: NDArray[Any] | Sequence[float] | float) -> ir.Value:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        return constant(self.graph, f"constant_{len(self.graph.initializers)}", array)

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        """Return a tensor of the checkpoint.

        Raises:
            ExportError: it is missing, or of another shape.
        """
        if name not in self._weights:
            raise ExportError(
                f"has no {name}", where=self._where, do="name the published weights of this network"
            )
        self.unread.discard(name)
        found = self._weights[name]
        if shape is not None and found.shape != shape:
            raise ExportError(
                f"{name} is {list(found.shape)}, not {list(shape)}",
                where=self._where,
                do="name the published weights of this network",
            )
        return found

    def conv(
        self,
        x: ir.Value,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        group: int = 1,
    ) -> ir.Value:
        terms = [self.constant(v) for v in (weight, bias) if v is not None]
        return self(
            "Conv", x, *terms, strides=[stride, stride], pads=[*padding, *padding], group=group
        )

    def pool(self, op: str, x: ir.Value, stride: int, padding: int = 0, size: int = 3) -> ir.Value:
        """Add MaxPool, or AveragePool that leaves padding out of its means."""
        return self(op, x, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[padding] * 4)

    def output(self, name: str, value: ir.Value, shape: Sequence[int | str]) -> None:
        """Make a value an output of the graph, float32."""
        out = self("Identity", value)
        out.name, out.shape = name, ir.Shape(shape)
        out.type = ir.TensorType(ir.DataType.FLOAT)
        self.graph.outputs.append(out)

    def write(self, path: Path, title: str) -> None:
        """Write the graph with its weights as one ONNX file, whole or not at all.

        Raises:
            WorkspaceError: it cannot be written.
        """
        model = ir.Model(
            self.graph,
            ir_version=10,
            producer_name="arvg-trt",
            producer_version=tool_version(),
            metadata_props={"arvg_trt.network": title},
        )
        atomic_write(path, graph_bytes(model))
