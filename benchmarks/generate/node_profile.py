"""Profile where a step graph spends its time, by kind of node, with ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ...runtime.sessions.open import SLOW_OPTIMIZERS
from ...runtime.spec import GeneratorSpec

ROUNDS = 4


def largest_step(step: Path, spec: GeneratorSpec, threads: int) -> dict[str, float]:
    """Return milliseconds by kind of node, longest first.

    The step is that of the most tokens behind the longest cache, of an image under guidance.
    """
    most = {axis: largest for axis, (_, _, largest) in spec.axis_sizes("step", 1).items()}
    n, past = most["n"], most["past"]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = ort.InferenceSession(
            str(step),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(SLOW_OPTIMIZERS),
        )
        sizes = {"rows": 2, "n": n, "past": past}
        rng = np.random.default_rng(0)
        feeds = {
            value.name: rng.normal(size=[sizes.get(axis, axis) for axis in value.shape])
            for value in session.get_inputs()
        }
        feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
        positions = np.arange(past, past + n)
        for _ in range(ROUNDS):
            session.run(None, feeds | {"position_ids": positions})
        events = json.loads(Path(session.end_profiling()).read_text())
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["args"]["op_name"]] += event["dur"]
    return {kind: spent / ROUNDS / 1000 for kind, spent in found.most_common()}
