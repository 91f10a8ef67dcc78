"""A folder is packed to count what a device gets of it, and opened to measure its memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.engines.packed.write import known_weights, pack_folder
from arvg_trt.graph.weight_file import SharedWeights
from arvg_trt.runtime.packed.expand import untold
from arvg_trt.samples.files import save_sample
from arvg_trt.validate.machine.start import StartRequest, measure_starts
from arvg_trt.validate.measure.sizes import measure_download
from arvg_trt.workspace.peak_memory import STATUS
from arvg_trt.workspace.stage import SilentReporter

from ...engines.packed.folders import SIDE, linears, quantized_folder


def test_a_download_is_what_packing_leaves(tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path / "ws")
    found = measure_download("qdq", folder, folder, untold)
    output = tmp_path / "packed"
    output.mkdir()
    pack_folder(folder, output, known_weights(folder))
    spec = (folder / "generator.json").stat().st_size
    assert found.bytes == sum(path.stat().st_size for path in output.iterdir()) + spec
    assert found.expanded_bytes == sum(p.stat().st_size for p in folder.glob("*.onnx*")) + spec
    assert found.form == "packed"


def test_plans_and_the_models_that_open_them_are_downloaded(tmp_path: Path) -> None:
    for name, size in (("a.engine", 100), ("a_ctx.onnx", 10), ("a.onnx", 1000)):
        (tmp_path / name).write_bytes(bytes(size))
    found = measure_download("engine", tmp_path, tmp_path, untold)
    assert (found.form, found.bytes, found.expanded_bytes) == ("engine", 110, 110)


class Warned(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


def request(folder: Path, feeds: str = "x") -> StartRequest:
    """Ask for the graph `model` of a folder, fed with one row."""
    sample = save_sample({feeds: np.ones((1, SIDE), np.float32)}, folder.parent, 0)
    return StartRequest(
        folder=str(folder),
        kind="custom",
        side=8,
        graphs=("model",),
        sample=str(sample),
        threads=1,
    )


def identity(folder: Path) -> Path:
    """Write a graph that has one square weight."""
    folder.mkdir()
    with SharedWeights(folder) as file:
        file.write(ir.from_proto(linears(("w", np.eye(SIDE, dtype=np.float32)))), "model")
    return folder


@pytest.mark.skipif(not STATUS.is_file(), reason="Linux says it of a process")
def test_memory_grows_with_the_weights_that_are_opened(tmp_path: Path) -> None:
    found = []
    for name, count in (("small", 1), ("large", 1024)):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(0)
        square = (SIDE, SIDE)
        weights = [(f"w{k}", rng.normal(size=square).astype(np.float32)) for k in range(count)]
        with SharedWeights(folder) as file:
            file.write(ir.from_proto(linears(*weights)), "model")
        starts = measure_starts({name: request(folder)}, SilentReporter(), count=1)[name]
        assert starts.memory_bytes is not None
        assert len(starts.load_ms) == 1 and starts.load_ms[0] > 0
        assert len(starts.first_ms) == 1 and not starts.device_bytes
        found.append(starts.memory_bytes)
    weights_bytes = 1023 * 4 * SIDE * SIDE
    assert weights_bytes < found[1] - found[0] < 8 * weights_bytes


def test_a_process_that_fails_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    reporter = Warned()
    assert measure_starts({"qdq": request(tmp_path)}, reporter, count=3) == {}
    (line,) = reporter.lines  # once, not at every start
    assert line.startswith("memory and start of qdq were not measured: ") and "model.onnx" in line


def test_graphs_of_ones_own_run_a_sample_in_turn(tmp_path: Path) -> None:
    asked = request(identity(tmp_path / "graphs"))
    found = measure_starts({"qdq": asked}, SilentReporter(), count=2)["qdq"]
    assert len(found.load_ms) == len(found.first_ms) == 2 and min(found.first_ms) > 0


def test_a_sample_that_the_graphs_do_not_take_is_a_warning(tmp_path: Path) -> None:
    reporter = Warned()
    asked = request(identity(tmp_path / "graphs"), feeds="other")
    assert measure_starts({"qdq": asked}, reporter, count=3) == {}
    assert "nothing feeds" in reporter.lines[0]
