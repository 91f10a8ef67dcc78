"""A measured run keeps each stage once for dry runs, and leaves engines for GPUs out."""

from __future__ import annotations

from arvg_trt.benchmarks.run_cost import by_stage
from arvg_trt.workspace.times import Took


def test_engines_for_the_cpu_add_up_and_those_for_gpus_are_left_out() -> None:
    times = {
        "quantize/w8a8": Took(seconds=5.0, bytes=50, memory=500),
        "engines/w8a8/onnxruntime": Took(seconds=1.0, bytes=10, memory=300),
        "engines/w8a8/openvino-bf16": Took(seconds=2.0, bytes=20, memory=200),
        "engines/w8a8/rtx-sm89": Took(seconds=90.0, bytes=90, memory=900),
        "export": Took(seconds=7.0, bytes=70),
    }
    found = by_stage(times)
    assert list(found) == ["export", "quantize", "build"]
    assert found["build"] == Took(seconds=3.0, bytes=30, memory=300)
    assert found["export"] == Took(seconds=7.0, bytes=70, memory=None)
