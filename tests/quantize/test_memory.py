"""The memory that stages take beside mapped files is a small multiple of the largest weight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ..families.custom.watched import WATCH

# What is split into parts and what is kept are as small beside this weight as they are beside one
# of 2 GB. A first run of each stage on a tiny graph leaves the imports out.
STAGES = (
    WATCH
    + """
import json
import numpy as np, onnx
from arvg_trt.api import Workspace
from arvg_trt.calibrate.observers import run
from arvg_trt.numerics import packing, parts, weight, weight_range
from arvg_trt.quantize.scaling import choose_per_tensor, predicted, trial_parts

SMALL = 2**16
ROWS, COLUMNS = 2048, 4096  # of half, runs spread from 2.4 to above 3 times its bytes
parts.PART = packing.PACKED = predicted.CACHED = SMALL
weight.ROUNDED = weight.CHUNK = weight_range.CHUNK = SMALL
trial_parts.TRIAL_BYTES = choose_per_tensor.KEPT_BYTES = SMALL
run.COPIED = ROWS * COLUMNS - 1

def stages(folder, rows, columns):
    folder.mkdir()
    rng = np.random.default_rng(0)
    held = {"w": rng.standard_normal((rows, columns), np.float32), "v": np.ones((rows, 2), "f")}
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n, %d] x) => (float[n, 2] y) {'
        "a = MatMul(x, w) r = Relu(a) m = ReduceMean<axes = [1]>(r)"
        " b = MatMul(x, v) y = Add(b, m) }" % rows
    )
    for name, value in held.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, folder / "g.onnx", save_as_external_data=True)
    x = rng.standard_normal((3, rows), np.float32)
    x[:, 0] *= 30
    np.savez(folder / "x.npz", x=x)
    workspace, feeds = Workspace(folder / "ws"), str(folder / "x.npz")
    workspace.export("onnx", graphs=[folder / "g.onnx"])
    return {
        "calibrate": lambda: workspace.calibrate(feeds=feeds, samples=2),
        "quantize": lambda: workspace.quantize(),
    }

for stage in stages(Path(sys.argv[1]) / "tiny", 16, 8).values():
    stage()
threading.Thread(target=watch, daemon=True).start()
peaks = {}
for name, stage in stages(Path(sys.argv[1]) / "large", ROWS, COLUMNS).items():
    before = anonymous()
    seen.clear()
    stage()
    peaks[name] = (max(seen) - before) / (4 * ROWS * COLUMNS)
print(json.dumps(peaks))
"""
)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's figures")
def test_a_large_weight_is_quantized_in_a_few_copies(tmp_path: Path) -> None:
    """The default search took 10.6 times the weight: six candidates at once, widened to floats.

    Observers took a copy of their own, in another layout.
    """
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(tmp_path)], capture_output=True, text=True, check=True
    )
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert peaks["calibrate"] < 0.5
    assert peaks["quantize"] < 3
