"""Tracing leaves torch's exporter as it was, and repeats nothing for each graph."""

from __future__ import annotations

import gc

import numpy as np
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from arvg_trt.export.tracing import operator_table, trace

from ..graph.text import random, run


def test_the_table_of_operators_is_made_once_for_all_graphs() -> None:
    usual, thresholds = vars(ONNXRegistry)["from_torchlib"], gc.get_threshold()
    x = random(0, 2, 3)
    operator_table.cache_clear()
    for k in range(3):
        module = nn.Linear(3, 4 + k)
        graph = trace(module, (torch.zeros(2, 3),), None, ["x"], ["y"])
        wanted = module(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(run(graph, x=x)["y"], wanted, atol=1e-6)
    used = operator_table.cache_info()
    assert (used.misses, used.hits >= 2) == (1, True)
    assert vars(ONNXRegistry)["from_torchlib"] is usual
    assert gc.get_threshold() == thresholds
