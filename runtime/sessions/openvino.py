"""Run graphs with OpenVINO on the CPU, from the blobs that a build compiled beside them.

A blob fits one release of OpenVINO and one kind of processor. On any other the graph is compiled
again, into the user's cache, and the session says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov

from ...errors import ArvgError, BundleError, OutOfMemory
from ...workspace.files import decode_json, own_folder, user_cache
from .openvino_files import RECORD, CompiledGraphs, blob_path
from .openvino_rounding import write_rounding_out
from .openvino_values import Lease, OutputValue, SharedArray, contiguous, tensor_of
from .placement import OPENVINO
from .processors import may_saturate, processor_name, session_threads
from .session import Array, DeviceValue, refusal

Precision = Literal["f32", "bf16"]

NUMPY_NAMES = {
    **{"f16": "float16", "f32": "float32", "f64": "float64", "boolean": "bool"},
    "f8e4m3": "float8e4m3fn",  # which numpy has not
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
SINK = "/sink_port_0"  # what OpenVINO appends to the name of a graph's output
# With dynamic shapes, OpenVINO 2026.4.1 takes kernels of attention that it made for other shapes:
# a VAR's fourth step, 16 tokens after one of 1 on an empty cache, is 90 % off in FP32. Without
# these fused kernels every step agrees, and a picture of var-mini takes 613 ms instead of 770.
WITHOUT_FUSED_KERNELS = {"SNIPPETS_MODE": "DISABLE"}
WITHOUT_INTEGERS = {"LP_TRANSFORMS_MODE": False}
MEMORY_SIGNS = ("bad_alloc", "bad allocation", "failed to allocate", "not enough memory")


class OpenVinoSession:
    """Run one graph on the CPU; requests whose outputs are still in use are never run again."""

    def __init__(
        self,
        path: Path,
        threads: int = 0,
        *,
        precision: Precision | None = None,
        in_float: bool = False,
    ) -> None:
        """Open the blob beside a graph, or compile the graph; `precision` is the blob's, else f32.

        With `in_float` products between Q/DQ pairs are computed in floats, as the graph says.

        Raises:
            BundleError: the graph does not load; the text says at which operator.
            OutOfMemory: it does not fit.
        """
        if threads < 0:
            raise ArvgError(f"threads is {threads}, not 0 (all) or more", where=str(path))
        self.path = path
        self.device, self.memory = OPENVINO, "cpu"
        self.fallback: str | None = None
        record = read_record(path.parent)
        self.precision: Precision = precision or (record.precision if record else "f32")
        built = record.graphs.get(path.stem) if record is not None else None
        in_float = self._in_float = in_float or (built is not None and built.in_float)
        core = ov.Core()
        settings = compile_settings(self.precision, threads, in_float)
        try:
            self._compiled = self._opened(core, record, settings)
            self._describe()
        except (RuntimeError, MemoryError) as error:
            if is_memory_failure(error):
                raise out_of_memory(path, "free memory, or use a smaller model") from error
            raise BundleError(
                f"OpenVINO cannot load the graph: {reason_of(error)}",
                where=str(path),
                do="run it with ONNX Runtime",
            ) from error
        self._idle: list[ov.InferRequest] = []
        if self.fallback is None and not in_float and record is not None and may_saturate():
            self.fallback = f"sums of INT8 may saturate: {processor_name()} lacks VNNI"

    def _opened(
        self, core: ov.Core, record: CompiledGraphs | None, settings: dict[str, Any]
    ) -> Any:
        """Return the compiled graph, by its blob where that fits; `fallback` says if it did not."""
        graph = record.graphs.get(self.path.stem) if record is not None else None
        if record is None or graph is None or self.precision != record.precision:
            model = self._read(core)
            self.metadata: Mapping[str, str] = model_metadata(model)
            return core.compile_model(model, "CPU", settings)
        self.metadata = graph.metadata
        blob = blob_path(self.path)
        if not graph.has_blob:
            return core.compile_model(self._read(core), "CPU", settings)
        here = (ov.__version__, processor_name())
        problem = None if (record.version, record.processor) == here else "another"
        if problem is None:
            try:
                return core.import_model(blob.read_bytes(), "CPU", settings)
            except RuntimeError as error:  # other instructions than the processor's name tells
                problem = reason_of(error)
        self.fallback = (
            f"compiled again: the blob is of OpenVINO {short_version(record.version)} for "
            f"{record.processor}, and here is {short_version(here[0])} on {here[1]}"
        )
        if problem != "another":
            self.fallback = f"compiled again: OpenVINO does not take the blob ({problem})"
        try:
            cache = own_folder(own_folder(user_cache() / "openvino") / cache_entry(*here))
        except (OSError, ArvgError):  # compiled each time, where nothing can be kept
            return core.compile_model(self._read(core), "CPU", settings)
        return core.compile_model(self._read(core), "CPU", {**settings, "CACHE_DIR": str(cache)})

    def _read(self, core: ov.Core) -> ov.Model:
        """Return the graph as it is compiled: rounding that would go wrong in plain operators."""
        model = core.read_model(self.path)
        write_rounding_out(model, every=self._in_float)
        return model

    def _describe(self) -> None:
        """Read the names, shapes and types of the compiled graph."""
        self.inputs: tuple[str, ...] = tuple(p.get_any_name() for p in self._compiled.inputs)
        self.outputs: tuple[str, ...] = tuple(map(output_name, self._compiled.outputs))
        ports = zip(
            (*self.inputs, *self.outputs),
            (*self._compiled.inputs, *self._compiled.outputs),
            strict=True,
        )
        self.shapes: dict[str, Sequence[object]] = {}
        self.types: dict[str, str] = {}
        for name, port in ports:
            self.shapes[name] = [
                None if size.is_dynamic else size.get_length() for size in port.partial_shape
            ]
            kind = port.element_type.get_type_name()
            self.types[name] = NUMPY_NAMES.get(kind, kind)

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Return the named outputs (default: all) of feeds by input name."""
        names = self.outputs if outputs is None else outputs
        unknown = [name for name in names if name not in self.outputs]
        if unknown:
            raise BundleError(f"has no output {unknown[0]}", where=str(self.path))
        made = self._infer(feeds)
        arrays = {name: np.array(made[name].numpy()) for name in names}
        return arrays

    def to_device(self, array: Array, kind: str | None = None) -> DeviceValue:
        """Return the array as a tensor that shares its memory.

        Raises:
            BundleError: it is to be of a type that numpy has not.
        """
        if kind is not None:
            raise BundleError(
                f"OpenVINO keeps no {kind} from step to step",
                where=str(self.path),
                do="quantize with --kv-cache int8, or build for onnxruntime",
            )
        return SharedArray(np.ascontiguousarray(array).reshape(np.shape(array)))

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        """Run like `run` with all outputs, which are not copied: the request's own tensors."""
        made: dict[str, DeviceValue] = dict(self._infer(feeds))
        return made

    def _infer(self, feeds: Mapping[str, Array | DeviceValue]) -> dict[str, OutputValue]:
        """Run a request that nobody reads any more, or a new one."""
        if feeds.keys() != set(self.inputs):
            # OpenVINO would run with what an input was fed before, or with zeros.
            raise refusal(self, "OpenVINO", f"the inputs are {', '.join(self.inputs)}", feeds)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        lease = Lease(request, self._idle)
        # OpenVINO reads the memory of arrays without keeping them: they live until it has run.
        held = {name: contiguous(value) for name, value in feeds.items()}
        try:
            for name, value in held.items():
                request.set_tensor(name, tensor_of(value))
            request.infer()
        except (RuntimeError, MemoryError) as error:
            if is_memory_failure(error):
                raise out_of_memory(self.path, "use a smaller batch") from error
            raise refusal(self, "OpenVINO", reason_of(error), feeds) from error
        tensors = zip(self.outputs, request.output_tensors, strict=True)
        return {name: OutputValue(tensor, lease) for name, tensor in tensors}

    def layers(self) -> list[dict[str, str]]:
        """Return what OpenVINO made of the graph: the attributes of each layer, as texts.

        Kernels of dynamic shapes are chosen in the first run: before it they are not named.
        """
        nodes = self._compiled.get_runtime_model().get_ordered_ops()
        return [
            {"name": node.get_friendly_name()}
            | {key: str(getattr(v, "value", v)) for key, v in node.get_rt_info().items()}
            for node in nodes
        ]

    def export_blob(self) -> bytes:
        """Return the compiled graph as this release opens it on this kind of processor."""
        return bytes(self._compiled.export_model().getvalue())

    @property
    def computes_in(self) -> str:
        """Return the precision that the processor computes in: bf16 only where it can."""
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT")
        return str(hint.get_type_name() if hasattr(hint, "get_type_name") else hint)


def compile_settings(precision: Precision, threads: int, in_float: bool = False) -> dict[str, Any]:
    """Return OpenVINO's properties for one image at a time, computed as the graph says.

    By its own default it rounds the inputs of linears with compressed weights to INT8 in groups of
    32, and computes in bfloat16 where the processor can.
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
        **WITHOUT_FUSED_KERNELS,
        **(WITHOUT_INTEGERS if in_float else {}),
    }
    count = session_threads(threads)
    return settings | ({"INFERENCE_NUM_THREADS": count} if count else {})


def read_record(folder: Path) -> CompiledGraphs | None:
    """Return what a build says of the blobs in a folder; None where nothing was built.

    Raises:
        BundleError: it cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    return decode_json(path, CompiledGraphs, do="build it again", error=BundleError)


def cache_entry(version: str, processor: str) -> str:
    """Return the folder of the user's cache for graphs compiled here, named as its entries are."""
    digest = hashlib.sha256(f"{version} {processor}".encode()).hexdigest()
    return f"{digest[:32]}-compiled"


def openvino_version() -> str:
    """Return the full version of OpenVINO, with the commit that it was made from."""
    return str(ov.__version__)


def short_version(version: str) -> str:
    return version.partition("-")[0]


def model_metadata(model: ov.Model) -> dict[str, str]:
    """Return what an ONNX graph says of itself, as the reader keeps it."""
    try:
        held = model.rt_info["framework"]
    except (KeyError, RuntimeError):
        return {}
    held = getattr(held, "value", held)
    return {str(key): str(getattr(v, "value", v)) for key, v in dict(held or {}).items()}


def output_name(port: Any) -> str:
    """Return the name that the graph gives an output, where merged nodes left it several."""
    name = str(port.get_node().get_friendly_name()).removesuffix(SINK)
    return name if name in port.get_names() else str(port.get_any_name())


def is_memory_failure(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in MEMORY_SIGNS)


def out_of_memory(path: Path, do: str) -> OutOfMemory:
    return OutOfMemory("out of memory in OpenVINO", where=str(path), do=do)


def reason_of(error: Exception) -> str:
    """Return what OpenVINO says is wrong, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [s for s in lines if s and not s.startswith(("Exception from ", "Check '"))]
    return " ".join(said or lines)[:300]
