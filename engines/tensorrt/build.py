"""Compile ONNX to a TensorRT or TensorRT for RTX plan, and list the layers it became.

Where every shape is fixed (no dynamic input, or profiles with min = opt = max) and the process has
fixed addresses, the same graph, targets and builder give the same bytes. With a range of shapes
TensorRT for RTX numbers its shape arithmetic anew on each build: the same kernels, other bytes.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...errors import BuildError
from ...runtime.trt_compat import Backend, BuilderModule, device_compute_capability, load_builder
from ...workspace.files import atomic_write
from .inspect import Layer, parse_layers, table_order
from .targets import Target

Shape = tuple[int, ...]
Profiles = Mapping[str, tuple[Shape, Shape, Shape]]


class BuildResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a plan file as built; ``bytes`` is its size, ``seconds`` parsing and compiling.

    ``layers`` is empty where the builder does not print the list. ``table`` has
    the outputs in the plan's order, where it can be read. Nothing here was executed.
    """

    bytes: int
    sha256: str
    seconds: float
    layers: tuple[Layer, ...]
    outputs: tuple[str, ...]
    table: tuple[str, ...] | None
    builder_version: str
    targets: tuple[str, ...]
    status: str = "built, not executed"

    @property
    def in_order(self) -> bool:
        """Return whether the plan has the outputs in the graph's order, where it can be read."""
        return self.table in (None, self.outputs)


@dataclass(frozen=True, slots=True)
class _Attempt:
    plan: bytes = b""
    layers: str = ""
    outputs: tuple[str, ...] = ()
    problem: BuildError | None = None


def build_engine(
    onnx_path: Path,
    output: Path,
    *,
    backend: Backend,
    targets: Sequence[Target],
    profiles: Profiles,
) -> BuildResult:
    """Compile `onnx_path` (external data beside it) for all `targets` and write the plan.

    `profiles` maps each input with dynamic dimensions to its (min, opt, max) shapes. With the
    tensorrt backend the one target is the GPU of this machine.

    Raises:
        BuildError: no builder or GPU, a graph that cannot be read or built, or a missing or
            impossible profile.
    """
    if not targets:
        raise BuildError("no target given", where=str(onnx_path), do="name one, e.g. rtx4090")
    if not onnx_path.is_file():
        raise BuildError("no such file", where=str(onnx_path), do="run `arvg-trt quantize` first")
    api = load_builder(backend)
    if not api.ahead_of_time:
        _require_local_gpu(targets)
    start = time.perf_counter()
    attempt = _compile(api, onnx_path, targets, profiles)
    if attempt.problem is not None:
        raise attempt.problem
    seconds = time.perf_counter() - start
    atomic_write(output, attempt.plan)
    return BuildResult(
        bytes=len(attempt.plan),
        sha256=hashlib.sha256(attempt.plan).hexdigest(),
        seconds=seconds,
        layers=parse_layers(attempt.layers),
        outputs=attempt.outputs,
        table=table_order(attempt.plan, attempt.outputs),
        builder_version=f"{backend} {api.version}",
        targets=tuple(target.sm for target in targets),
    )


def _require_local_gpu(targets: Sequence[Target]) -> None:
    capability = device_compute_capability()
    if capability is None:
        raise BuildError(
            "TensorRT times kernels on the GPU it builds for, and this machine has none",
            do="build on the device, or use the tensorrt_rtx backend",
        )
    for target in targets:
        if target.compute_capability != capability:
            raise BuildError(
                f"TensorRT builds for the GPU of this machine, sm{capability}, not for {target}",
                do="build on that device, or use the tensorrt_rtx backend",
            )


def _compile(
    api: BuilderModule, onnx_path: Path, targets: Sequence[Target], profiles: Profiles
) -> _Attempt:
    """Parse and build a graph; return problems instead of raising them.

    TensorRT logs to the logger of the oldest living builder, and a traceback would keep this one
    alive into the next build.
    """
    trt = api.module
    log = api.recorder()
    builder = trt.Builder(log)
    network = api.network(builder)
    parser = trt.OnnxParser(network, log)
    where = str(onnx_path)
    if not parser.parse_from_file(where):
        return _Attempt(problem=_parse_error(parser, log, where, network, trt.bfloat16))
    if not network.num_outputs:  # the parser takes some files of noise for an empty model
        what = "is not an ONNX model with outputs"
        return _Attempt(problem=BuildError(what, where=where, do=DAMAGED))
    config = api.config(builder, [target.compute_capability for target in targets])
    inputs = {
        network.get_input(i).name: tuple(network.get_input(i).shape)
        for i in range(network.num_inputs)
    }
    problem = _profile_problem(inputs, profiles, where)
    if problem is not None:
        return _Attempt(problem=problem)
    if profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in profiles.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        text = _one_line(log.errors[-1]) if log.errors else "the builder gave no reason"
        names = ", ".join(target.sm for target in targets)
        what = f"cannot be built for {names}: {text}"
        do = way_on(text, network, trt.bfloat16)
        return _Attempt(problem=BuildError(what, where=where, do=do))
    outputs = tuple(network.get_output(i).name for i in range(network.num_outputs))
    return _Attempt(plan=bytes(plan), layers=log.layers, outputs=outputs)


DAMAGED = "run the stage that wrote it again"
BFLOAT16 = "build with --half bfloat16, which has the range of float32"
# Words in a builder's message, with the remedy to suggest; the first match counts.
WAYS_ON = (
    (r"\bmemory\b|\balloc", "free memory, or build with a smaller --image-size and --max-batch"),
    (r"datatypes?: *b16|\bbf(loat)?16\b", "leave out --half bfloat16, or name targets from sm80"),
    (
        r"plugin not found|no importer|unsupported op|op(erator)? .*not supported",
        "`arvg-trt analyze` lists what each target takes; --backend onnxruntime takes most",
    ),
    (r"overflow|65504|(half|fp16|float16).*range|range.*(half|fp16|float16)", BFLOAT16),
    (r"failed to parse|protobuf", DAMAGED),
)


def way_on(text: str, network: Any, bfloat16: Any) -> str:
    """Return what a user can do about a builder's refusal, by the reason that it gives.

    A network that already computes in `bfloat16`, the builder's type, does not get that advice.
    """
    layers = (network.get_layer(k) for k in range(network.num_layers))
    is_bfloat16 = any(
        layer.get_output(k).dtype == bfloat16 for layer in layers for k in range(layer.num_outputs)
    )
    for signs, do in WAYS_ON:
        if re.search(signs, text, re.IGNORECASE) and not (do == BFLOAT16 and is_bfloat16):
            return do
    exclude = "quantize again with --exclude SITE for what it names"
    return exclude if is_bfloat16 else f"{exclude}, or {BFLOAT16}"


def _parse_error(parser: Any, log: Any, where: str, network: Any, bfloat16: Any) -> BuildError:
    if not parser.num_errors:
        text = _one_line(log.errors[-1]) if log.errors else "the parser gave no reason"
        return BuildError(f"cannot be parsed: {text}", where=where, do=DAMAGED)
    error = parser.get_error(0)
    node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
    text = _one_line(error.desc())
    do = way_on(text, network, bfloat16) if node else DAMAGED
    return BuildError(f"cannot be parsed: {node}{text}", where=where, do=do)


def _profile_problem(
    inputs: Mapping[str, Shape], profiles: Profiles, where: str
) -> BuildError | None:
    for name in profiles:
        if name not in inputs:
            return BuildError(
                f"profile for {name}, which is no input",
                where=where,
                do=f"inputs: {', '.join(inputs)}",
            )
    for name, shape in inputs.items():
        if name not in profiles:
            if -1 in shape:
                return BuildError(
                    f"input {name} has the dynamic shape {list(shape)} and no profile",
                    where=where,
                    do="give its min, opt and max shapes",
                )
            continue
        low, best, high = profiles[name]
        ordered = len(low) == len(best) == len(high) == len(shape) and all(
            0 <= a <= b <= c and size in (-1, a) and size in (-1, c)
            for a, b, c, size in zip(low, best, high, shape, strict=True)
        )
        if not ordered:
            return BuildError(
                f"profile {low}, {best}, {high} of input {name} does not fit {list(shape)}",
                where=where,
                do="give min <= opt <= max shapes, equal where the size is fixed",
            )
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
