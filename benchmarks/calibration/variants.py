"""Run, or calibrate, the full graph of a folder in one way; `calibration.py` starts it.

Writes `told.json`: seconds, and of quantized graphs the SQNR of their logits.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
import numpy as np

from ...calibrate.calibration_run import CalibrationRun
from ...calibrate.observers.smoothed import Floats, SmoothedInput
from ...graph.io import load_graph
from ...graph.sites import SiteMap
from ...numerics.qparams import QParams
from ...quantize.groups import find_groups
from ...quantize.plan import check_plan, make_plan
from ...quantize.run import quantize_model
from ...quantize.token_qparams import grid_candidates
from ...recipe.quantize import QuantizeOptions
from ...runtime.generator import TEACHER_FORCED
from ...runtime.sessions.open import reference_session
from ...samples.files import Array, load_sample, sample_files
from ...workspace.files import decode_json
from ..common import QuietReporter

BATCH = 1
PEER = "percentile"
CLIPS = (1.0, 0.8, 0.6)
# Nothing but the ranges of channels is needed: a scale a tensor, without clips.
ONE_PASS = QuantizeOptions(smoothing=0.5, token_wise=False, clip_power=0)
BEST = QuantizeOptions(smoothing="gps")
VARIANTS: Mapping[str, str] = {
    "plain": "plain FP32 inference",
    "ranges": "pass 1: ranges and squares by channel and position",
    "errors": "pass 2: squared errors of three clips a position",
    "once": "calibrated and quantized from pass 1 alone, W8A8",
    "ours": "calibrated and quantized, W8A8",
    PEER: "onnxruntime, percentile calibrator",
    "peer_int8": "onnxruntime, quantize_static by percentile",
}
progress = QuietReporter().progress


def run_plain(export: Path, samples: Path, _: Path) -> None:
    run = CalibrationRun(export, samples, (TEACHER_FORCED,), BATCH, progress)
    run.observe(lambda graph, model: None, lambda graph, outputs: None)


def run_ranges(export: Path, samples: Path, kept: Path) -> None:
    from ...calibrate.statistics import save_statistics

    sites = load_map(export).of_graph(TEACHER_FORCED)
    found = CalibrationRun(export, samples, (sites[0].graph,), BATCH, progress).input_ranges(sites)
    save_statistics(found, kept)


def run_errors(export: Path, samples: Path, kept: Path) -> None:
    """Run clip errors on the statistics that `run_ranges` kept."""
    wanted = candidate_grids(export, kept)
    gc.collect()  # the graph whose weights were looked at has cycles
    passes = CalibrationRun(export, samples, (TEACHER_FORCED,), BATCH, progress)
    passes.clip_errors(*wanted)


def candidate_grids(
    export: Path, kept: Path
) -> tuple[dict[str, SmoothedInput], dict[str, list[QParams]], dict[str, Floats]]:
    """Return inputs, three QParams and channel weights of each group with positions."""
    from ...calibrate.statistics import load_statistics

    planned = SiteMap(sites=load_map(export).of_graph(TEACHER_FORCED))
    entries = check_plan(make_plan(planned, QuantizeOptions()), planned)
    model = load_graph(export / f"{TEACHER_FORCED}.onnx")
    groups = find_groups(model.graph, planned.sites, entries, load_statistics(kept))
    grids = {
        g.key: grid_candidates(g.tokens or g.stats, 8, allow_shift=True, fractions=CLIPS)
        for g in groups
        if g.tokens is not None
    }
    views = {g.key: g.plain for g in groups if g.key in grids}
    gains = {g.key: np.sqrt(g.energy) for g in groups if g.key in grids}
    return views, grids, gains


def load_map(export: Path) -> SiteMap:
    return decode_json(export / "sites.json", SiteMap, do="export again")


def quantize_ours(
    export: Path, samples: Path, kept: Path, output: Path, options: QuantizeOptions
) -> None:
    from ...calibrate.statistics import load_statistics

    sites = load_map(export)
    planned = sites.calibrated
    run_ranges(export, samples, kept)
    quantize_model(
        CalibrationRun(export, samples, sites.graphs, BATCH, progress),
        output,
        sites,
        check_plan(make_plan(planned, options), planned),
        load_statistics(kept),
        options,
        shared=True,
    )


class Reader:
    """Give samples as ONNX Runtime's calibrators take them."""

    def __init__(self, samples: Path) -> None:
        self._rows: Iterator[dict[str, Array]] = (load_sample(p) for p in sample_files(samples))

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


def calibrate_peer(export: Path, samples: Path, scratch: Path) -> None:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    calibrator = create_calibrator(
        export / f"{TEACHER_FORCED}.onnx",
        ["MatMul"],
        augmented_model_path=str(scratch / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Percentile,
        use_external_data_format=True,
    )
    calibrator.collect_data(Reader(samples))
    calibrator.compute_data()


def quantize_peer(export: Path, samples: Path, output: Path) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        export / f"{TEACHER_FORCED}.onnx",
        output / f"{TEACHER_FORCED}.onnx",
        Reader(samples),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Percentile,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )


def logits_sqnr(wanted: Path, found: Path, rows: Path) -> float:
    """Return the SQNR in dB over all rows, in sessions without rewrites."""
    sessions = [reference_session(path) for path in (wanted, found)]
    signal = noise = 0.0
    for path in sample_files(rows):
        row = load_sample(path)
        a, b = (s.run(row, ["logits"])["logits"].astype(np.float64) for s in sessions)
        signal, noise = signal + float(np.square(a).sum()), noise + float(np.square(b - a).sum())
    return 10 * float(np.log10(signal / noise))


@click.command()
@click.argument("variant", type=click.Choice(list(VARIANTS)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--samples", type=int, required=True)
def main(variant: str, folder: Path, samples: int) -> None:
    """Run VARIANT on the first samples of FOLDER."""
    export, some = folder / "export", folder / f"samples.{samples}"
    if not some.is_dir():
        some.mkdir()
        for path in sample_files(folder / "samples")[:samples]:
            shutil.copyfile(path, some / path.name)
    output, kept = folder / variant, folder / f"statistics.{samples}"
    output.mkdir(exist_ok=True)
    work: Mapping[str, Callable[[], None]] = {
        "plain": lambda: run_plain(export, some, kept),
        "ranges": lambda: run_ranges(export, some, kept),
        "errors": lambda: run_errors(export, some, kept),
        "once": lambda: quantize_ours(export, some, kept, output, ONE_PASS),
        "ours": lambda: quantize_ours(export, some, kept, output, BEST),
        PEER: lambda: calibrate_peer(export, some, output),
        "peer_int8": lambda: quantize_peer(export, some, output),
    }
    start = time.perf_counter()
    work[variant]()
    told = {"seconds": time.perf_counter() - start}
    if (output / f"{TEACHER_FORCED}.onnx").is_file():
        paths = (export / f"{TEACHER_FORCED}.onnx", output / f"{TEACHER_FORCED}.onnx")
        told["sqnr_db"] = logits_sqnr(*paths, folder / "held_out")
    (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
