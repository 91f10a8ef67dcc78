"""Compute the shapes of a graph's tensors from the sizes of its inputs."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import onnx

from ...errors import BuildError
from ...graph.io import read_proto
from .inference import infer_sizes

Shape = tuple[int, ...]
Axes = Mapping[str, int]  # sizes of dynamic axes, by name
Dim = int | str
PRODUCT = re.compile(r"(?P<factor>\d+) ?\* ?(?P<axis>\w+)")


@dataclass(frozen=True, eq=False)
class GraphShapes:
    """Hold a graph with the shapes of its tensors, whose sizes are numbers or expressions.

    An export writes the sizes of every tensor as sums and products of its inputs' axes, such as
    ``past + n``.
    """

    path: Path
    proto: onnx.ModelProto = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> GraphShapes:
        """Read a graph without its weights.

        Raises:
            WorkspaceError: it is missing, or no ONNX model.
        """
        return cls(path, read_proto(path))

    @cached_property
    def weights(self) -> Mapping[str, Shape]:
        """Return the shapes of the initializers by name."""
        return {each.name: tuple(each.dims) for each in self.proto.graph.initializer}

    @cached_property
    def inputs(self) -> Mapping[str, tuple[Dim, ...]]:
        """Return the shapes of the inputs, by name."""
        return {
            value.name: dims(value)
            for value in self.proto.graph.input
            if value.name not in self.weights
        }

    @cached_property
    def outputs(self) -> Mapping[str, tuple[Dim, ...]]:
        """Return the shapes of the outputs, by name."""
        return {value.name: dims(value) for value in self.proto.graph.output}

    @cached_property
    def _values(self) -> Mapping[str, tuple[Dim, ...]]:
        inside = {value.name: dims(value) for value in self.proto.graph.value_info}
        return {**inside, **self.inputs, **self.outputs, **self.weights}

    def axes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Return the sizes of the dynamic axes, from the shapes that the inputs have."""
        found: dict[str, int] = {}
        for name, shape in shapes.items():
            for dim, size in zip(self.inputs[name], shape, strict=True):
                if isinstance(dim, str):
                    axis, factor = axis_of(dim)
                    found[axis] = int(size) // factor
        return found

    def shape(self, tensor: str, axes: Axes) -> Shape:
        """Return a tensor's shape.

        Raises:
            BuildError: it follows neither from what the export says nor from ONNX's own rules.
        """
        try:
            return tuple(size_of(dim, axes) for dim in self._values[tensor])
        except (SyntaxError, KeyError, TypeError):
            shapes = self._inferred(tuple(sorted(axes.items()))) if self._known(axes) else {}
        if tensor in shapes:
            return shapes[tensor]
        raise BuildError(
            f"the shape of {tensor} does not follow from the inputs' axes "
            f"({', '.join(sorted(axes)) or 'none'})",
            where=str(self.path),
            do="export the model with fixed input shapes",
        )

    def _known(self, axes: Axes) -> bool:
        """Return whether every dynamic axis of the inputs has a size."""
        sizes = (size for shape in self.inputs.values() for size in shape)
        return all(axis_of(size)[0] in axes for size in sizes if isinstance(size, str))

    @lru_cache(maxsize=64)  # noqa: B019  frozen, and as short-lived as the prediction
    def _inferred(self, axes: tuple[tuple[str, int], ...]) -> Mapping[str, Shape]:
        """Return the shapes that follow where the axes have these sizes.

        Expressions of an exporter may use names of its own, which no input has.
        """
        sizes = dict(axes)
        inputs = {
            name: tuple(
                dim if isinstance(dim, int) else axis_of(dim)[1] * sizes[axis_of(dim)[0]]
                for dim in shape
            )
            for name, shape in self.inputs.items()
        }
        said: dict[str, Shape] = {}
        for name, shape in self._values.items():
            with contextlib.suppress(SyntaxError, KeyError, TypeError):
                said[name] = tuple(size_of(dim, sizes) for dim in shape)
        return infer_sizes(self.proto, inputs, said)


def dims(value: onnx.ValueInfoProto) -> tuple[Dim, ...]:
    """Return a tensor's sizes: numbers, names of axes, or expressions of them.

    Of a tensor whose rank is not known that is one size, which is not either.
    """
    if not value.type.tensor_type.HasField("shape"):
        return ("?",)
    return tuple(
        dim.dim_param or "?" if not dim.HasField("dim_value") else int(dim.dim_value)
        for dim in value.type.tensor_type.shape.dim
    )


def size_of(dim: Dim, axes: Axes) -> int:
    """Return a size: a number, an axis by its whole name, whatever is in it, or an expression.

    Raises:
        KeyError, SyntaxError, TypeError: it does not follow from the axes.
    """
    if isinstance(dim, int):
        return dim
    return axes[dim] if dim in axes else evaluate(dim, axes)


def axis_of(expression: str) -> tuple[str, int]:
    """Return the axis of an input's size and its factor: ``h`` and 8 of ``8*h``."""
    found = PRODUCT.fullmatch(expression)
    return (found["axis"], int(found["factor"])) if found else (expression, 1)


def evaluate(expression: str, axes: Axes) -> int:
    """Return the value of sums, differences, products and floored quotients of axes.

    Raises:
        KeyError: an axis without a size.
        SyntaxError, TypeError: it is no such expression.
    """
    return _value(ast.parse(expression, mode="eval").body, axes)


def _value(node: ast.expr, axes: Axes) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return axes[node.id]
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, axes), _value(node.right, axes)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.FloorDiv():
                return left // right
    raise TypeError(f"{ast.unparse(node)} is no sum or product of axes")
