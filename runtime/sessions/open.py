"""Open sessions: the reference session for accuracy, the fast one for speed.

The default optimizations compute wrong results for symmetric INT8 graphs of several shapes
(microsoft/onnxruntime#27845), so figures of accuracy come from a session without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...extras import require_packages
from .onnxruntime import FUSES_PAIRS, OnnxRuntimeSession
from .placement import ON_CPU, Placement
from .session import Session

# On QLinearConv graphs, moving to NHWC costs more in transposes and in DequantizeLinear per
# channel than the convolutions gain (158 against 171 ms for the DI8x8 encoder at 256x256).
SLOW_OPTIMIZERS = ("NhwcTransformer",)
INTEGER_CONVOLUTION = b"QLinearConv"


def open_session(
    path: Path,
    *,
    optimized: bool,
    threads: int = 0,
    lean: bool = False,
    mapped: bool = False,
    graph: bytes | None = None,
    disabled: Sequence[str] = (),
    fused: bool = True,
    placement: Placement = ON_CPU,
) -> Session:
    """Open a graph with chosen optimizations, on the CPU or where `placement` says.

    `lean` frees each tensor as soon as nothing needs it, at little cost of speed: into the
    session's arena or, where `mapped`, to the system. `mapped` leaves the weights in their file,
    shared by all sessions and processes that map it; without, each session makes its own copy in
    the layout that its products are fastest with.
    `graph` holds the graph's bytes when it is a changed copy of the one at `path`, whose folder
    then has its weights. Where not `fused`, optimizations leave Q/DQ pairs as they are, so that
    the products between them are computed in float, as the graph says.

    Raises:
        BundleError: the graph does not load, or parts of it would run elsewhere than asked.
        OutOfMemory: it does not fit.
    """
    return OnnxRuntimeSession(
        path,
        optimized=optimized,
        threads=threads,
        lean=lean,
        mapped=mapped,
        graph=graph,
        disabled=disabled,
        fused=fused,
        placement=placement,
    )


def reference_session(path: Path, threads: int = 0) -> Session:
    """Open a graph that runs every node as written, for figures of accuracy."""
    return open_session(path, optimized=False, threads=threads)


def fast_session(path: Path, threads: int = 0, placement: Placement = ON_CPU) -> Session:
    """Open a graph with all optimizations but the slow ones: FP32 graphs and checked engines."""
    return open_session(
        path,
        optimized=True,
        threads=threads,
        disabled=disabled_for(path),
        placement=placement,
    )


def engine_session(path: Path, threads: int = 0, *, placement: Placement) -> Session:
    """Open an engine by the EPContext model beside the graph `path` that it was built from.

    Nothing is optimized: there is one node, and the engine is finished.
    """
    return open_session(context_path(path), optimized=False, threads=threads, placement=placement)


def openvino_session(path: Path, threads: int = 0) -> Session:
    """Open a graph with OpenVINO, by the blob beside it where that fits this machine.

    Raises:
        ArvgError: OpenVINO is not installed.
        BundleError: the graph does not load.
        OutOfMemory: it does not fit.
    """
    require_packages("openvino")
    from .openvino import OpenVinoSession

    return OpenVinoSession(path, threads)


def context_path(graph: Path) -> Path:
    """Return the EPContext model of a graph: step_ctx.onnx for step.onnx, as providers name it."""
    return graph.with_name(f"{graph.stem}_ctx.onnx")


def has_graph(path: Path) -> bool:
    """Return whether a graph is there, or the EPContext model of the engine built from it."""
    return path.is_file() or context_path(path).is_file()


def disabled_for(path: Path) -> tuple[str, ...]:
    """Return the optimizers that slow a graph down, or break one with integer convolutions.

    Those have all their products in integer operators: there is nothing left to fuse.
    """
    return disabled_in(path.read_bytes() if path.is_file() else b"")


def disabled_in(graph: bytes) -> tuple[str, ...]:
    """Return what `disabled_for` does, of the bytes of a graph."""
    if INTEGER_CONVOLUTION in graph:
        return (*SLOW_OPTIMIZERS, FUSES_PAIRS)
    return SLOW_OPTIMIZERS


def mapped_session(path: Path, threads: int = 0, placement: Placement = ON_CPU) -> Session:
    """Open a graph whose weights stay in their file, shared by several graphs.

    VAR d16's step of 256 tokens takes 1.18 times as long as with `fast_session`, and 0.2 instead of
    1.1 GB of memory beside the mapped file.
    """
    return open_session(
        path,
        optimized=True,
        threads=threads,
        lean=True,
        mapped=True,
        disabled=disabled_for(path),
        placement=placement,
    )
