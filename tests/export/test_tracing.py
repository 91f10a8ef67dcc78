"""Tracing leaves torch's exporter as it was, and repeats nothing for each graph."""

from __future__ import annotations

import gc

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from arvg_trt.export.tracing import operator_table, trace


def test_the_table_of_operators_is_made_once_for_all_graphs() -> None:
    usual, thresholds = vars(ONNXRegistry)["from_torchlib"], gc.get_threshold()
    x = np.random.default_rng(0).standard_normal((2, 3), np.float32)
    operator_table.cache_clear()
    for k in range(3):
        module = nn.Linear(3, 4 + k)
        graph = trace(module, (torch.zeros(2, 3),), None, ["x"], ["y"])
        session = ort.InferenceSession(ir.to_proto(graph).SerializeToString())
        wanted = module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, atol=1e-6)
    used = operator_table.cache_info()
    assert (used.misses, used.hits >= 2) == (1, True)
    assert vars(ONNXRegistry)["from_torchlib"] is usual
    assert gc.get_threshold() == thresholds
