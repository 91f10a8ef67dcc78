"""Compare what runs a quantization on the CPU: our ONNX Runtime engine, OpenVINO, NNCF's INT8.

python -m arvg_trt.benchmarks.cpu_engines WORKSPACE --name int8 [--rounds 10] [--result NAME]

FP32 in ONNX Runtime is what all are compared with, in one process and in turn. OpenVINO runs the
same Q/DQ graphs in float32 and, where the processor has it, in bfloat16; NNCF quantizes the FP32
graph with the calibration's own samples, by its defaults, and OpenVINO runs it. Accuracy is on
inputs that no calibration saw: photographs, or what a generator of another seed fed its graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..numerics.noise import SignalAndNoise
from ..runtime.families import SPEC_FILE
from ..runtime.folders import opener
from ..runtime.generator import Generator
from ..runtime.images import center_crop, to_model
from ..runtime.sessions.open import fast_session, reference_session
from ..runtime.sessions.session import Array, DeviceValue, Session, SessionObserver
from ..samples.files import load_sample, sample_files
from ..samples.images import open_source
from ..validate.metrics.latency import interleaved, ratio
from ..workspace.stage import package_versions
from .common import (
    HELD_OUT_PHOTOGRAPHS,
    RESULTS,
    SIZE,
    environment,
    environment_line,
    markdown_table,
    write_results,
)

FP32, OURS = "ONNX Runtime, FP32", "ONNX Runtime, our engine"
SEED = 7_000
Feeds = list[dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Name what runs a graph, and open it; `reason` says why it cannot run here."""

    name: str
    open: Callable[[], Session] | None
    reason: str = ""


class Recorded(SessionObserver):
    """Keep a copy of what a graph is fed."""

    def __init__(self, session: Session, kept: Feeds) -> None:
        super().__init__(session)
        self._kept = kept

    def run_on_device(
        self, feeds: Mapping[str, Array | DeviceValue], host: Collection[str] = ()
    ) -> dict[str, DeviceValue]:
        self._kept.append(
            {k: np.array(v if isinstance(v, np.ndarray) else v.numpy()) for k, v in feeds.items()}
        )
        return super().run_on_device(feeds, host)


def held_out_feeds(workspace: Path, images: str, count: int) -> dict[str, Feeds]:
    """Return what graphs are fed in runs that no calibration saw, by graph."""
    export = workspace / "export"
    if (export / SPEC_FILE).is_file():
        kept: dict[str, Feeds] = {}

        def session(path: Path, threads: int) -> Session:
            return Recorded(reference_session(path, threads), kept.setdefault(path.stem, []))

        Generator.open(export, session=session).generate(list(range(count)), seed=SEED)
        return {"step": kept["step"]} if "step" in kept else kept
    source = open_source(images)
    crops = [to_model(center_crop(source.load(k), SIZE)) for k in range(len(source.files))[:count]]
    encoder = reference_session(export / "encoder.onnx")
    made = [encoder.run({"image": crop}) for crop in crops]
    decoder = reference_session(export / "decoder.onnx")
    (code,) = decoder.inputs
    held = "indices" if "indices" in encoder.outputs else "latent"
    return {
        "encoder": [{"image": crop} for crop in crops],
        "decoder": [{code: each[held]} for each in made],
    }


def candidates(workspace: Path, name: str, graph: str, threads: int) -> list[Candidate]:
    """Return what runs a graph here; FP32 comes first."""
    export = workspace / "export" / f"{graph}.onnx"
    quantized = workspace / "quantize" / name / f"{graph}.onnx"
    engine = workspace / "engines" / name / "onnxruntime" / f"{graph}.onnx"
    own = opener(engine.parent, fast_session, "cpu")
    found = [
        Candidate(FP32, partial(fast_session, export, threads)),
        Candidate(OURS, partial(own, engine, threads)),
    ]
    if find_spec("openvino") is None:
        return [*found, Candidate("OpenVINO", None, "openvino is not installed")]
    import openvino as ov

    from ..runtime.sessions.openvino import OpenVinoSession

    opened = partial(OpenVinoSession, threads=threads)
    found += [
        Candidate("OpenVINO, FP32", partial(opened, export, precision="f32")),
        Candidate("OpenVINO, Q/DQ in f32", partial(opened, quantized, precision="f32")),
    ]
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        half = partial(opened, quantized, precision="bf16")
        found.append(Candidate("OpenVINO, Q/DQ in bf16", half))
    else:
        reason = "this processor has no bfloat16"
        found.append(Candidate("OpenVINO, Q/DQ in bf16", None, reason))
    return [*found, nncf_candidate(workspace, graph, threads)]


def nncf_candidate(workspace: Path, graph: str, threads: int) -> Candidate:
    """Return NNCF's INT8 of the FP32 graph, calibrated on the samples of the calibration."""
    name = "OpenVINO, NNCF's INT8"
    if find_spec("nncf") is None:
        return Candidate(name, None, "nncf is not installed")
    if graph != "encoder":
        return Candidate(name, None, "the samples of the calibration do not feed this graph")

    def quantized() -> Session:
        import nncf
        import openvino as ov

        from ..runtime.sessions.openvino import OpenVinoSession

        files = sample_files(workspace / "calibrate" / "samples")
        samples = [load_sample(path) for path in files]
        model = ov.Core().read_model(workspace / "export" / f"{graph}.onnx")
        made = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
        place = workspace / ".nncf"
        place.mkdir(exist_ok=True)
        ov.save_model(made, place / f"{graph}.xml", compress_to_fp16=False)
        return OpenVinoSession(place / f"{graph}.xml", threads, precision="f32")

    return Candidate(name, quantized)


def measure(
    found: Sequence[Candidate], feeds: Feeds, reference: Session, rounds: int
) -> list[dict[str, Any]]:
    """Return a row for each candidate: its median, how many times faster than FP32, its error."""
    sessions = {each.name: each.open() for each in found if each.open is not None}
    wanted = [reference.run(each) for each in feeds]
    accuracy = {name: compared(session, feeds, wanted) for name, session in sessions.items()}
    times = interleaved(
        {name: partial(replay, session, feeds) for name, session in sessions.items()},
        warmup=2,
        rounds=rounds,
    )
    rows: list[dict[str, Any]] = []
    for each in found:
        if each.open is None:
            rows.append({"candidate": each.name, "reason": each.reason})
            continue
        speed = ratio(times[FP32], times[each.name])
        row = {"candidate": each.name, "p50_ms": times[each.name].p50_ms}
        row |= {"ratio": speed.ratio, "low": speed.low, "high": speed.high}
        rows.append(row | accuracy[each.name])
    return rows


def replay(session: Session, feeds: Feeds) -> None:
    for each in feeds:
        session.run(each)


def compared(session: Session, feeds: Feeds, wanted: list[dict[str, Array]]) -> dict[str, Any]:
    """Return SQNR of the first float output, and the share of equal integers or of arg-maxes."""
    noise, equal, total = SignalAndNoise(), 0, 0
    for each, right in zip(feeds, wanted, strict=True):
        made = session.run(each)
        floats = next(n for n, v in right.items() if v.dtype.kind == "f")
        noise.add(right[floats], made[floats])
        tokens = next((n for n, v in right.items() if v.dtype.kind in "iu"), None)
        if tokens is not None:
            same = made[tokens] == right[tokens]
        elif floats == "logits":
            same = made[floats].argmax(-1) == right[floats].argmax(-1)
        else:
            continue
        equal, total = equal + int(np.count_nonzero(same)), total + same.size
    return {"sqnr_db": noise.decibels(), "equal": equal / total if total else None}


def line(row: Mapping[str, Any]) -> list[str]:
    """Return a row of the table."""
    if "reason" in row:
        return [row["candidate"], f"not run: {row['reason']}", "", "", ""]
    equal = "" if row["equal"] is None else f"{row['equal']:.1%}"
    speed = f"{row['ratio']:.2f}x ({row['low']:.2f} to {row['high']:.2f})"
    return [row["candidate"], f"{row['p50_ms']:.1f} ms", speed, f"{row['sqnr_db']:.1f} dB", equal]


@click.command()
@click.argument("workspace", type=click.Path(path_type=Path, exists=True))
@click.option("--name", default="int8", show_default=True)
@click.option("--images", default=HELD_OUT_PHOTOGRAPHS, show_default=True)
@click.option("--count", default=4, show_default=True, help="Photographs, or generated images.")
@click.option("--rounds", default=10, show_default=True)
@click.option("--threads", default=0, show_default=True)
@click.option("--result", default=None, help="Name of the files in benchmarks/results.")
def main(
    workspace: Path,
    name: str,
    images: str,
    count: int,
    rounds: int,
    threads: int,
    result: str | None,
) -> None:
    """Measure every graph of WORKSPACE with each back end for the CPU."""
    tables, rows = [], {}
    for graph, feeds in held_out_feeds(workspace, images, count).items():
        reference = reference_session(workspace / "export" / f"{graph}.onnx", threads)
        found = candidates(workspace, name, graph, threads)
        rows[graph] = measure(found, feeds, reference, rounds)
        head = ["what runs it", f"{len(feeds)} runs", "faster than FP32", "SQNR", "equal"]
        tables.append(f"## {graph}\n\n{markdown_table(head, [line(row) for row in rows[graph]])}")
        click.echo(tables[-1])
    if result is not None:
        made = environment(threads) | package_versions("openvino", "nncf")
        text = "\n\n".join([f"# {result}", environment_line(made), *tables])
        write_results(result, RESULTS, f"{text}\n", {"environment": made, "graphs": rows})


if __name__ == "__main__":
    main()
