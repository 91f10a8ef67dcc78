"""Run graphs with ONNX Runtime, on the CPU or through one of its providers for GPUs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ArvgError, BundleError, OutOfMemory
from .assignment import fallback_text, misplaced_nodes
from .library import load_onnxruntime
from .placement import ON_CPU, Placement
from .processors import may_saturate, session_threads
from .providers import ORT_ERRORS, add_provider, assignment_problem
from .session import Array, DeviceValue, refusal

if TYPE_CHECKING:
    import onnxruntime as ort
else:
    ort = load_onnxruntime()
# ONNX Runtime fuses FP8 products into an operator for integers. After convolutions with a scale per
# channel it fuses operators that take one per tensor: a sum does not load, a pool fails as it runs.
FUSES_PAIRS = "QDQSelectorActionTransformer"
FUSED_WRONGLY = ("float8", "QLinear")
# Where weights alone have 8 or 4 bits, products are computed in float: the default rounds inputs.
WEIGHT_ONLY_LEVEL = "session.qdq_matmulnbits_accuracy_level"
# Products of uint8 and int8 saturate in 16 bits on a CPU with AVX2 and without VNNI; with this the
# weights become uint8, whose products do not. Other CPUs obey too: 71 ms instead of 41, on one
# thread, for the encoder of cosmos-mini with VNNI.
WITHOUT_SATURATION = "session.x64quantprecision"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
DISABLE_PREPACKING = "session.disable_prepacking"
LEAVE_QDQ = "session.disable_quant_qdq"
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
# Errors of loading a graph: ONNX Runtime's classes, that of a provider which cannot be set up, and
# Python's for text that is not UTF-8.
LOAD_ERRORS: tuple[type[Exception], ...] = (*ORT_ERRORS, RuntimeError, UnicodeDecodeError)
# Words by which ONNX Runtime, the C++ library and CUDA report it; there is no error class or code.
MEMORY_SIGNS = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")


HOST = ("cpu", 0)
EMPTY_KINDS = {"float8e4m3fn": 17}  # onnx.TensorProto's number of a type that numpy has not


class OnnxRuntimeSession:
    """Run one graph on one execution provider; `open_session` says what the options mean."""

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
        placement: Placement = ON_CPU,
    ) -> None:
        self.path = path
        self.placement = placement
        if threads < 0:
            raise ArvgError(f"threads is {threads}, not 0 (all) or more", where=str(path))
        problem = assignment_problem()
        if placement.on_gpu and problem is not None:
            do = f"{problem.do}, or use --device cpu"
            raise BundleError(problem.what, where=str(path), do=do)
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
        options.add_session_config_entry(RECORD_ASSIGNMENT, str(int(placement.on_gpu)))
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
            providers = add_provider(options, placement)
            self._session = create_session(graph or str(path), options, disabled, providers)
            self._describe()
        except LOAD_ERRORS as error:
            if is_memory_failure(error):
                raise out_of_memory(path, "free memory, or use a smaller model") from error
            raise BundleError(
                f"ONNX Runtime cannot load the graph: {first_line(error)}",
                where=str(path),
                do="rebuild it with the stage that wrote it",
            ) from error
        self.fallback = self._require_placement()

    def _require_placement(self) -> str | None:
        """Return what runs on the CPU though a GPU was asked for, or is there; None: nothing.

        Raises:
            BundleError: something does, and the placement does not allow it.
        """
        if not self.placement.on_gpu:
            problem = self.placement.problem
            return f"the GPU is not used: {problem}" if problem else None
        assigned = self._session.get_provider_graph_assignment_info()
        text = fallback_text(misplaced_nodes(assigned, self.placement), self.placement)
        if text is None or self.placement.allow_fallback:
            return text
        raise BundleError(
            text,
            where=str(self.path),
            do="--allow-fallback runs it all the same, --device cpu all of it on the CPU",
        )

    def _describe(self) -> None:
        """Read the names, shapes, types and metadata that the graph gives."""
        self.device: str = self.placement.provider
        # ONNX Runtime's name of NVIDIA's memory, whichever provider computes in it. A provider
        # that could not be set up is left out, and then all of the graph runs on the CPU.
        on_gpu = self.placement.on_gpu and self.device in self._session.get_providers()
        self.memory: str = "cuda" if on_gpu else "cpu"
        self._place = (self.memory, self.placement.index if on_gpu else 0)
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

    def to_device(self, array: Array, kind: str | None = None) -> DeviceValue:
        """Return the array in the session's memory; on the CPU without a copy.

        With a `kind` of `EMPTY_KINDS`, which numpy has not, an empty array of that type. ONNX
        Runtime copies into a GPU's memory through its own CUDA provider, whichever provider
        the session has.

        Raises:
            BundleError: that provider does not load.
            OutOfMemory: the array does not fit.
        """
        try:
            value: DeviceValue = (
                ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), *self._place)
                if kind is None
                else ort.OrtValue.ortvalue_from_shape_and_type(
                    array.shape, EMPTY_KINDS[kind], *self._place
                )
            )
        except RuntimeError as error:
            if is_memory_failure(error):
                raise out_of_memory(self.path, "use a smaller batch") from error
            raise BundleError(
                f"values cannot be kept in the GPU's memory: {first_line(error)}",
                where=str(self.path),
                do="install CUDA 13 and cuDNN 9, or use --device cpu",
            ) from error
        return value

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        """Run like `run` with all outputs; values stay in the session's memory but for `host`."""
        binding = self._session.io_binding()
        try:
            for name, value in feeds.items():
                if isinstance(value, np.ndarray):  # the session's own provider copies it
                    binding.bind_cpu_input(name, np.ascontiguousarray(value))
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, *(HOST if name in host else self._place))
            self._session.run_with_iobinding(binding)
        except RuntimeError as error:  # bound runs have no other class of error
            raise self._failure(error, feeds) from error
        return dict(zip(self.outputs, binding.get_outputs(), strict=True))

    def _failure(self, error: Exception, feeds: Mapping[str, Array | DeviceValue]) -> ArvgError:
        """Return the error that tells the user what a failed run means."""
        if is_memory_failure(error):
            return out_of_memory(self.path, "use a smaller batch")
        return refusal(self, "ONNX Runtime", first_line(error), feeds)


def create_session(
    graph: bytes | str,
    options: ort.SessionOptions,
    disabled: Sequence[str],
    providers: Sequence[Any] = ("CPUExecutionProvider",),
) -> ort.InferenceSession:
    """Open a session of the graph or file; wrongly fused Q/DQ pairs cost it an optimizer."""
    try:
        # Without a fallback: ONNX Runtime would print the error and go on with the CPU.
        return ort.InferenceSession(
            graph,
            options,
            providers=list(providers) or None,
            disabled_optimizers=list(disabled),
            enable_fallback=0,
        )
    except (
        ort.capi.onnxruntime_pybind11_state.InvalidGraph,
        ort.capi.onnxruntime_pybind11_state.Fail,
    ) as error:
        if FUSES_PAIRS in disabled or not any(text in str(error) for text in FUSED_WRONGLY):
            raise
    return create_session(graph, options, [*disabled, FUSES_PAIRS], providers)


def numpy_name(kind: str) -> str:
    """Return numpy's name of an ONNX Runtime type, such as float32 of `tensor(float)`."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def is_memory_failure(error: Exception) -> bool:
    return any(sign in str(error) for sign in MEMORY_SIGNS)


def out_of_memory(path: Path, do: str) -> OutOfMemory:
    return OutOfMemory("out of memory in ONNX Runtime", where=str(path), do=do)


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300]
