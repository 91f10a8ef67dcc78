"""Where a step graph spends its time, by kind of node, as ONNX Runtime's profiler tells."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ..families.var.spec import VarSpec
from ..runtime.sessions.onnxruntime import SLOW_OPTIMIZERS

ROUNDS = 4


def largest_step(step: Path, spec: VarSpec, threads: int) -> dict[str, float]:
    """Milliseconds by kind of node of an image's last scale under guidance, longest first."""
    n = spec.patch_nums[-1] ** 2
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
        sizes = {"rows": 2, "n": n, "past": spec.length - n}
        rng = np.random.default_rng(0)
        feeds = {
            value.name: rng.normal(size=[sizes.get(axis, axis) for axis in value.shape])
            for value in session.get_inputs()
        }
        feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
        positions = np.arange(spec.length - n, spec.length)
        for _ in range(ROUNDS):
            session.run(None, feeds | {"position_ids": positions})
        events = json.loads(Path(session.end_profiling()).read_text())
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found[event["args"]["op_name"]] += event["dur"]
    return {kind: spent / ROUNDS / 1000 for kind, spent in found.most_common()}
