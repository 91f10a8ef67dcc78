"""Trace a module into an ONNX graph of the form that the passes expect."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from unittest import mock

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from ..graph.passes import Sequential
from .passes.linears import CanonicalLinearsPass
from .passes.naming import NameNodesPass
from .passes.norms import SplitLongNormsPass, marked
from .shape import ExportShape


def trace(
    module: nn.Module,
    example: tuple[Tensor | list[Tensor], ...],
    dynamic: Sequence[object] | None,
    input_names: list[str],
    output_names: list[str],
) -> ir.Model:
    """Export a module to ONNX with canonical linears; large weights stay where the module has them.

    `dynamic` names the axes of each input that vary; None for shapes that are all the example's.
    """
    with exporter():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=None if dynamic is None else tuple(dynamic),
            verbose=False,
        )
    assert program is not None
    passes = Sequential(
        NameNodesPass(), CanonicalLinearsPass(), SplitLongNormsPass(drifting=marked(module))
    )
    return passes(program.model).model


def past_names(depth: int) -> list[str]:
    """Return the names of inputs with the keys and values of the tokens so far."""
    return [f"past_{kind}.{i}" for kind in ("key", "value") for i in range(depth)]


def present_names(depth: int) -> list[str]:
    """Return the names of outputs with the old and the new tokens' keys and values."""
    return [name.replace("past", "present") for name in past_names(depth)]


def example_caches(
    depth: int, shape: tuple[int, ...], form: ExportShape
) -> tuple[list[Tensor], list[Tensor]]:
    """Return keys and values of `depth` blocks, each of `shape`."""
    kind = getattr(torch, form.kv_type)
    keys, values = ([torch.zeros(shape, dtype=kind) for _ in range(depth)] for _ in range(2))
    return keys, values


def name_presents(graph: ir.Model, heads: int, head_dim: int, n: str = "n") -> None:
    """Write their length as "past + n", which the exporter gives names of its own."""
    for value in graph.graph.outputs[1:]:
        value.shape = ir.Shape(["rows", heads, f"past + {n}", head_dim])


def cache_type(form: ExportShape) -> torch.dtype | None:
    """Return the type that the model rounds keys and values to, None for no rounding."""
    return torch.float16 if form.kv_type == "float16" else None


OPSET = 21
# Objects made, less those freed, until Python looks for garbage: 700 as it comes.
THRESHOLDS = 50_000, 20, 50


@contextmanager
def exporter() -> Iterator[None]:
    """Have torch's exporter work quietly, and do once what it would do for every graph."""
    with quiet(), rare_collections(), one_operator_table():
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Have Python look for garbage more rarely: a trace keeps nearly all that it makes.

    An export of `rar-mini` took 22.4 s of processor time with the usual thresholds, and 20.9 s
    with these, at 1 % more memory.
    """
    usual = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@contextmanager
def one_operator_table() -> Iterator[None]:
    """Have the exporter make its table of operators once a process, not for every graph.

    It parses some 500 sources for that, in 0.35 s of processor time; `var-mini` has 13 graphs,
    `par-mini` 9. There is no public way to hand a table over.
    """
    table = staticmethod(operator_table)
    with mock.patch.object(ONNXRegistry, "from_torchlib", table):
        yield


make_table = ONNXRegistry.from_torchlib


@cache
def operator_table(**opset: int) -> ONNXRegistry:
    """Return the exporter's table of operators for an opset, which exports only read."""
    return make_table(**opset)
