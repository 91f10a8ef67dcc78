"""The ONNX Runtime engine: rewritten graphs, checked against FP32 on calibration samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from safetensors import safe_open

from ..errors import BuildError
from ..runtime.images import load_image, to_model
from ..runtime.tokenizer import ImageTokenizer
from .group_norm_form import expand_group_norms
from .integer_forms import Ranges, match_chain, rewrite_convolutions
from .integer_linear import rewrite_linears

# A wrong rewrite is off by half the signal; the rounding of outputs costs a few dB.
WORST_LOSS_DB = 8.0
CHECK_SAMPLES = 2


class EngineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One engine graph, as reports list it."""

    backend: str
    target: str
    precision: str
    graph: str
    bytes: int
    build_seconds: float
    int8_sites_planned: int
    int8_sites_proved: int | None
    exceptions: tuple[dict[str, str], ...] = ()
    status: str = "executed"


def build_engine(
    source: Path,
    export: Path,
    samples: Path,
    statistics: Path,
    output: Path,
    *,
    progress: Callable[[str, int, int], None],
) -> list[EngineRow]:
    """Rewrite both graphs of `source` into `output` and check them on calibration samples.

    Raises:
        BuildError: the engine is further from FP32 than the rounding of outputs explains.
    """
    rows = []
    ranges = output_ranges(statistics)
    for k, graph in enumerate(("encoder", "decoder")):
        progress("rewriting for ONNX Runtime", k, 3)
        start = time.perf_counter()
        model = ir.load(source / f"{graph}.onnx")
        products = [n for n in model.graph if n.op_type in ("Conv", "MatMul")]
        planned = [str(node.name) for node in products if match_chain(node)]
        done = rewrite_convolutions(model, ranges) + rewrite_linears(model)
        expand_group_norms(model.graph)
        path = output / f"{graph}.onnx"
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
        size = sum(p.stat().st_size for p in (path, path.with_name(f"{path.name}.data")))
        rows.append(
            EngineRow(
                backend="onnxruntime",
                target="cpu",
                precision="INT8 + FP32" if done else "FP32",
                graph=graph,
                bytes=size,
                build_seconds=time.perf_counter() - start,
                int8_sites_planned=len(planned),
                int8_sites_proved=len(done),
                exceptions=tuple(
                    {"site": name, "reason": "its chain has no INT8 form"}
                    for name in planned
                    if name not in done
                ),
            )
        )
    progress("checking the engine", 2, 3)
    check_engine(source, export, output, sorted(samples.glob("*.png"))[:CHECK_SAMPLES])
    progress("checking the engine", 3, 3)
    return rows


def output_ranges(statistics: Path) -> Ranges:
    """(low, high) per output channel of each site, from calibration."""
    suffix = ":output:low"
    with safe_open(statistics, framework="numpy") as file:
        names = [key.removesuffix(suffix) for key in list(file.keys()) if key.endswith(suffix)]
        return {
            name: (file.get_tensor(f"{name}{suffix}"), file.get_tensor(f"{name}:output:high"))
            for name in names
        }


def check_engine(source: Path, export: Path, engine: Path, samples: list[Path]) -> None:
    """Compare the engine as executed and the Q/DQ graph with FP32, half by half."""
    images = [to_model(load_image(path)) for path in samples]
    latents, pictures = [], []
    inputs: list[NDArray[Any]] = []
    for k, tokenizer in enumerate(
        (
            ImageTokenizer.reference(export),
            ImageTokenizer.reference(source),
            ImageTokenizer.open(engine),
        )
    ):
        encoded = [tokenizer.encode(image) for image in images]
        if k == 0:
            inputs = [latent if tokens is None else tokens for tokens, latent in encoded]
        latents.append(np.concatenate([latent for _, latent in encoded]))
        pictures.append(np.concatenate([tokenizer.decode(t) for t in inputs]))
    for name, (fp32, qdq, executed) in (("encoder", latents), ("decoder", pictures)):
        simulated, real = sqnr_db(fp32, qdq), sqnr_db(fp32, executed)
        if not real >= min(simulated, 40.0) - WORST_LOSS_DB:
            raise BuildError(
                f"the ONNX Runtime {name} is {real:.1f} dB from FP32, "
                f"its Q/DQ graph {simulated:.1f}",
                where=str(engine / f"{name}.onnx"),
                do="report it with the output of `arvg-trt doctor`",
            )


def sqnr_db(reference: NDArray[Any], value: NDArray[Any]) -> float:
    wide = reference.astype(np.float64)
    noise = float(np.square(wide - value).sum())
    return float(10 * np.log10(np.square(wide).sum() / max(noise, 1e-30)))
