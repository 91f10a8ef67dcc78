"""Open ONNX Runtime sessions: the reference session for accuracy, the fast one for speed.

The default optimizations compute wrong results for symmetric INT8 graphs of several shapes
(microsoft/onnxruntime#27845), so figures of accuracy come from a session without them.

Loops keep what one run gives the next as `DeviceValue`s in the session's own memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ...errors import ArvgError, BundleError, OutOfMemory
from .processors import may_saturate, session_threads

Array = NDArray[np.generic]

# On QLinearConv graphs, moving to NHWC costs more in transposes and in DequantizeLinear per
# channel than the convolutions gain (158 against 171 ms for the DI8x8 encoder at 256x256).
SLOW_OPTIMIZERS = ("NhwcTransformer",)
# ONNX Runtime fuses FP8 products into an operator for integers. After convolutions with a scale per
# channel it fuses operators that take one per tensor: a sum does not load, a pool fails as it runs.
FUSES_PAIRS = "QDQSelectorActionTransformer"
FUSED_WRONGLY = ("float8", "QLinear")
INTEGER_CONVOLUTION = b"QLinearConv"
# Where weights alone have 8 or 4 bits, products are computed in float: the default rounds inputs.
WEIGHT_ONLY_LEVEL = "session.qdq_matmulnbits_accuracy_level"
# Products of uint8 and int8 saturate in 16 bits on a CPU with AVX2 and without VNNI; with this the
# weights become uint8, whose products do not. Other CPUs obey too: 71 ms instead of 41, on one
# thread, for the encoder of cosmos-mini with VNNI.
WITHOUT_SATURATION = "session.x64quantprecision"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
DISABLE_PREPACKING = "session.disable_prepacking"
LEAVE_QDQ = "session.disable_quant_qdq"
# Errors of loading a graph: ONNX Runtime's classes, and Python's for text that is not UTF-8.
LOAD_ERRORS: tuple[type[Exception], ...] = (
    *(
        kind
        for kind in vars(ort.capi.onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    UnicodeDecodeError,
)
# Words by which ONNX Runtime, the C++ library and CUDA report it; there is no error class or code.
MEMORY_SIGNS = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")


class DeviceValue(Protocol):
    """Hold a tensor in a session's memory (an `OrtValue`); `numpy` brings it to the host."""

    def shape(self) -> Sequence[int]: ...

    def numpy(self) -> Array: ...


class OnnxRuntimeSession:
    """Run one graph on one execution provider; `run` takes and returns arrays by name.

    `lean` frees each tensor as soon as nothing needs it, at little cost of speed: into the
    session's arena or, where `mapped`, to the system. `mapped` leaves the weights in their file,
    shared by all sessions and processes that map it; without, each session makes its own copy in
    the layout that its products are fastest with.
    `graph` holds the graph's bytes when it is a changed copy of the one at `path`, whose folder
    then has its weights. Where not `fused`, optimizations leave Q/DQ pairs as they are, so that
    the products between them are computed in float, as the graph says.
    """

    def __init__(
        self,
        path: Path,
        *,
        optimized: bool,
        threads: int = 0,
        lean: bool = False,
        mapped: bool = False,
        graph: bytes | None = None,
        disabled: Sequence[str] = (),
        fused: bool = True,
    ) -> None:
        self.path = path
        if threads < 0:
            raise ArvgError(f"threads is {threads}, not 0 (all) or more", where=str(path))
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come back as exceptions, once
        options.intra_op_num_threads = session_threads(threads)
        # With memory new from the system for every tensor, `quantize` of a tokenizer took 32 s
        # instead of 28.
        options.enable_cpu_mem_arena = not (lean and mapped)
        options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent.resolve()))
        options.add_session_config_entry(DISABLE_PREPACKING, str(int(mapped)))
        options.add_session_config_entry(WEIGHT_ONLY_LEVEL, "1")
        options.add_session_config_entry(WITHOUT_SATURATION, str(int(may_saturate())))
        options.add_session_config_entry(LEAVE_QDQ, str(int(not fused)))
        options.enable_mem_pattern = not lean
        if lean:
            # The default order runs what hangs off a tensor last, which keeps every one alive.
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_ENABLE_ALL
            if optimized
            else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
        try:
            self._session = open_session(graph or str(path), options, disabled)
            self._describe()
        except LOAD_ERRORS as error:
            if is_memory_failure(error):
                raise out_of_memory(path, "free memory, or use a smaller model") from error
            raise BundleError(
                f"ONNX Runtime cannot load the graph: {first_line(error)}",
                where=str(path),
                do="rebuild it with the stage that wrote it",
            ) from error

    def _describe(self) -> None:
        """Read the names, shapes, types and metadata that the graph gives."""
        self.device: str = self._session.get_providers()[0]
        self.memory: str = self.device.removesuffix("ExecutionProvider").lower()
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())
        ends = (*self._session.get_inputs(), *self._session.get_outputs())
        self.shapes: Mapping[str, Sequence[object]] = {end.name: end.shape for end in ends}
        self.types: Mapping[str, str] = {end.name: numpy_name(end.type) for end in ends}
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return the named outputs (default: all) of feeds by input name."""
        names = list(self.outputs if outputs is None else outputs)
        try:
            values = self._session.run(names, dict(feeds))
        except (
            ort.capi.onnxruntime_pybind11_state.RuntimeException,
            ort.capi.onnxruntime_pybind11_state.InvalidArgument,
            ort.capi.onnxruntime_pybind11_state.Fail,
        ) as error:
            raise self._failure(error, feeds) from error
        return dict(zip(names, values, strict=True))

    def to_device(self, array: Array) -> DeviceValue:
        """Return the array in the session's memory; on the CPU without a copy."""
        value: DeviceValue = ort.OrtValue.ortvalue_from_numpy(
            np.ascontiguousarray(array), self.memory, 0
        )
        return value

    def run_on_device(self, feeds: Mapping[str, Array | DeviceValue]) -> dict[str, DeviceValue]:
        """Run like `run` with all outputs; values stay in the session's memory."""
        placed = {
            name: self.to_device(value) if isinstance(value, np.ndarray) else value
            for name, value in feeds.items()
        }
        binding = self._session.io_binding()
        try:
            for name, value in placed.items():
                binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, self.memory)
            self._session.run_with_iobinding(binding)
        except RuntimeError as error:  # bound runs have no other class of error
            raise self._failure(error, feeds) from error
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))

    def _failure(self, error: Exception, feeds: Mapping[str, Array | DeviceValue]) -> ArvgError:
        """Return the error that tells the user what a failed run means."""
        if is_memory_failure(error):
            return out_of_memory(self.path, "use a smaller batch")
        shapes = ", ".join(f"{k} {list(shape_of(v))}" for k, v in feeds.items())
        return BundleError(
            f"ONNX Runtime refused {shapes}: {first_line(error)}",
            do="check the input's shape and type against the graph",
        )


def open_session(
    graph: bytes | str, options: ort.SessionOptions, disabled: Sequence[str]
) -> ort.InferenceSession:
    """Open a session of the graph or file; wrongly fused Q/DQ pairs cost it an optimizer."""
    providers = ["CPUExecutionProvider"]
    try:
        return ort.InferenceSession(
            graph, options, providers=providers, disabled_optimizers=list(disabled)
        )
    except (
        ort.capi.onnxruntime_pybind11_state.InvalidGraph,
        ort.capi.onnxruntime_pybind11_state.Fail,
    ) as error:
        if FUSES_PAIRS in disabled or not any(text in str(error) for text in FUSED_WRONGLY):
            raise
    return open_session(graph, options, [*disabled, FUSES_PAIRS])


def numpy_name(kind: str) -> str:
    """Return numpy's name of an ONNX Runtime type, such as float32 of `tensor(float)`."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def shape_of(value: Array | DeviceValue) -> Sequence[int]:
    return value.shape if isinstance(value, np.ndarray) else value.shape()


def is_memory_failure(error: Exception) -> bool:
    return any(sign in str(error) for sign in MEMORY_SIGNS)


def out_of_memory(path: Path, do: str) -> OutOfMemory:
    return OutOfMemory("out of memory in ONNX Runtime", where=str(path), do=do)


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300]


def reference_session(path: Path, threads: int = 0) -> OnnxRuntimeSession:
    """Open a graph that runs every node as written, for figures of accuracy."""
    return OnnxRuntimeSession(path, optimized=False, threads=threads)


def fast_session(path: Path, threads: int = 0) -> OnnxRuntimeSession:
    """Open a graph with all optimizations but the slow ones: FP32 graphs and checked engines."""
    return OnnxRuntimeSession(path, optimized=True, threads=threads, disabled=disabled_for(path))


def disabled_for(path: Path) -> tuple[str, ...]:
    """Return the optimizers that slow a graph down, or break one with integer convolutions.

    Those have all their products in integer operators: there is nothing left to fuse.
    """
    if path.is_file() and INTEGER_CONVOLUTION in path.read_bytes():
        return (*SLOW_OPTIMIZERS, FUSES_PAIRS)
    return SLOW_OPTIMIZERS


def mapped_session(path: Path, threads: int = 0) -> OnnxRuntimeSession:
    """Open a graph whose weights stay in their file, shared by several graphs.

    VAR d16's step of 256 tokens takes 1.18 times as long as with `fast_session`, and 0.2 instead of
    1.1 GB of memory beside the mapped file.
    """
    return OnnxRuntimeSession(
        path, optimized=True, threads=threads, lean=True, mapped=True, disabled=disabled_for(path)
    )
