"""Compile ONNX to a TensorRT or TensorRT for RTX plan, and list the layers it became.

Polygraphy parses and builds. It chooses between the two packages when it is imported, and both log
to one logger, so that a build belongs in a process of its own (`process.py`).

Where every shape is fixed (no dynamic input, or profiles with min = opt = max) and the process has
fixed addresses, the same graph, targets and builder give the same bytes. With a range of shapes
TensorRT for RTX numbers its shape arithmetic anew on each build: the same kernels, other bytes.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...errors import BuildError, bounded
from ...runtime.trt_compat import Backend, BuilderModule, load_builder
from ...workspace.files import atomic_write
from ..facts import BUILT
from .addresses import fill_heap
from .inspect import Layer, parse_layers, table_order
from .refusals import DAMAGED, no_plan, not_parsed
from .targets import Target, require_local_gpu

Shape = tuple[int, ...]
Profiles = Mapping[str, tuple[Shape, Shape, Shape]]
RTX_FLAG = "POLYGRAPHY_USE_TENSORRT_RTX"


class TimingCache(msgspec.Struct, frozen=True, kw_only=True):
    """Name the file with TensorRT's timings of kernels; what is timed is added where ``update``.

    TensorRT for RTX times nothing and has none.
    """

    path: str
    update: bool


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
    status: str = BUILT

    @property
    def in_order(self) -> bool:
        """Return whether the plan has the outputs in the graph's order, where it can be read."""
        return self.table in (None, self.outputs)


def build_engine(
    onnx_path: Path,
    output: Path,
    *,
    backend: Backend,
    targets: Sequence[Target],
    profiles: Profiles,
    timing_cache: TimingCache | None = None,
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
    api = load_polygraphy(backend)
    if not api.ahead_of_time:
        require_local_gpu(targets)
    start = time.perf_counter()
    plan, log, outputs = _compile(api, onnx_path, targets, profiles, timing_cache)
    seconds = time.perf_counter() - start
    atomic_write(output, plan)
    return BuildResult(
        bytes=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        seconds=seconds,
        layers=parse_layers(log),
        outputs=outputs,
        table=table_order(plan, outputs),
        builder_version=f"{backend} {api.version}",
        targets=tuple(target.sm for target in targets),
    )


def load_polygraphy(backend: Backend) -> BuilderModule:
    """Import the package of `backend`, and Polygraphy so that it builds with it.

    Raises:
        BuildError: one of them is missing or does not load.
        RuntimeError: Polygraphy was imported for the other package before.
    """
    api = load_builder(backend)
    for_rtx = backend == "tensorrt_rtx"
    os.environ[RTX_FLAG] = str(int(for_rtx))
    from polygraphy import config
    from polygraphy.backend import tensorrt_rtx, trt  # noqa: F401 (before the heap is filled)

    if for_rtx != config.USE_TENSORRT_RTX:
        raise RuntimeError(f"Polygraphy was imported before for another package than {backend}")
    return api


def _compile(
    api: BuilderModule,
    onnx_path: Path,
    targets: Sequence[Target],
    profiles: Profiles,
    timing_cache: TimingCache | None,
) -> tuple[bytes, str, tuple[str, ...]]:
    """Return a graph's plan, the layer list that the builder logged, and the names of outputs.

    Raises:
        BuildError: the graph does not parse or build, or a profile does not fit.
    """
    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath
    from polygraphy.backend.trt import util as trt_util
    from polygraphy.exception import PolygraphyException

    log = trt_util.TRT_LOGGER = _recorder(api.module)
    said = _hear_polygraphy()
    where = str(onnx_path)
    try:
        builder, network, parser = NetworkFromOnnxPath(where, strongly_typed=asks_for_types(api))()
    except PolygraphyException as error:
        reasons = [*said[:-1], *log.errors[-1:], *said]  # the last that it says is that it failed
        raise not_parsed(onnx_path, reasons) from error
    if not network.num_outputs:  # the parser takes some files of noise for an empty model
        raise BuildError("is not an ONNX model with outputs", where=where, do=DAMAGED)
    inputs = {
        network.get_input(i).name: tuple(network.get_input(i).shape)
        for i in range(network.num_inputs)
    }
    _check_profiles(inputs, profiles, where)
    make_config = builder_config(api, targets, profiles, timing_cache)

    def config(builder: Any, network: Any) -> Any:
        made = make_config(builder, network)
        fill_heap()
        return made

    updated = timing_cache.path if timing_cache and timing_cache.update else None
    try:
        plan = EngineBytesFromNetwork(
            (builder, network, parser), config=config, save_timing_cache=updated
        )()
    except PolygraphyException as error:
        raise no_plan(onnx_path, targets, [*log.errors[-1:], *said]) from error
    outputs = tuple(network.get_output(i).name for i in range(network.num_outputs))
    return bytes(plan), log.layers, outputs


def builder_config(
    api: BuilderModule,
    targets: Sequence[Target],
    profiles: Profiles,
    timing_cache: TimingCache | None,
) -> Any:
    """Return Polygraphy's builder configuration, which lists the layers in the log."""
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import CreateConfig, Profile

    profile = Profile()
    for name, shapes in profiles.items():
        profile.add(glob.escape(name), *shapes)  # names are patterns there
    if api.ahead_of_time:
        capabilities = [divmod(target.compute_capability, 10) for target in targets]
        return CreateConfigRTX(compute_capabilities=capabilities, profiles=[profile])
    cache = timing_cache.path if timing_cache else None
    # TF32 is TensorRT's own default for what stays in FP32, Polygraphy's is without.
    return CreateConfig(profiles=[profile], load_timing_cache=cache, tf32=True)


def asks_for_types(api: BuilderModule) -> bool:
    """Return whether strong typing is a flag: 10.x must be asked, 11 and RTX always do it."""
    return not api.ahead_of_time and int(api.version.split(".")[0]) < 11


def _hear_polygraphy() -> list[str]:
    """Return a list that gets every error that Polygraphy reports from now on; it prints none."""
    from polygraphy.logger import G_LOGGER

    said: list[str] = []

    class Handler(logging.Handler):
        """Keep the text of a record."""

        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    G_LOGGER.colors = G_LOGGER.letter = False
    G_LOGGER.module_severity = G_LOGGER.ERROR
    G_LOGGER.use_python_logging_system = True
    logger = logging.getLogger("Polygraphy")
    logger.handlers, logger.propagate = [Handler()], False
    return said


def _check_profiles(inputs: Mapping[str, Shape], profiles: Profiles, where: str) -> None:
    """Raise BuildError for a profile that does not fit an input.

    Polygraphy would give a dynamic input without one the size 1.
    """
    for name in profiles:
        if name not in inputs:
            raise BuildError(
                f"profile for {name}, which is no input",
                where=where,
                do=f"inputs: {bounded([*inputs], 'inputs', 8)}",
            )
    for name, shape in inputs.items():
        if name not in profiles:
            if -1 in shape:
                raise BuildError(
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
            raise BuildError(
                f"profile {low}, {best}, {high} of input {name} does not fit {list(shape)}",
                where=where,
                do="give min <= opt <= max shapes, equal where the size is fixed",
            )


def _recorder(module: Any) -> Any:
    """Return a logger that keeps error texts (``errors``) and the layer list (``layers``)."""
    base: Any = module.ILogger

    class Recorder(base):  # type: ignore[misc]  # the package has no type stubs
        """Keep two kinds of message of the many thousands that a verbose build writes."""

        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:"):
                self.layers = message

    return Recorder()
