"""Fixtures that every test may use; each is defined where its kind of thing is made."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from arvg_trt.runtime.devices import this_device

from .export.checkpoint.hub import empty_cache, hub, served
from .families.generators import generator, generators, tiny_rar_graphs, tiny_var
from .families.tiny import (
    custom_files,
    samples,
    statistics,
    tiny_ci,
    tiny_di,
    tiny_gsq,
    tiny_int8,
    tiny_llamagen,
    tiny_log4,
    tiny_mar,
    tiny_par,
    tiny_rar,
)
from .families.var_vqvae.models import tiny_tokenizer
from .graph.builders import conv_case, integer_case
from .one_process import one_process
from .pipeline.fixtures import exported, finished, mini_of, quantized_mar, quantized_of, workspace

__all__ = [
    "conv_case",
    "custom_files",
    "empty_cache",
    "exported",
    "finished",
    "generator",
    "generators",
    "hub",
    "integer_case",
    "mini_of",
    "one_process",
    "quantized_mar",
    "quantized_of",
    "samples",
    "served",
    "statistics",
    "tiny_ci",
    "tiny_di",
    "tiny_gsq",
    "tiny_int8",
    "tiny_llamagen",
    "tiny_log4",
    "tiny_mar",
    "tiny_par",
    "tiny_rar",
    "tiny_rar_graphs",
    "tiny_tokenizer",
    "tiny_var",
    "workspace",
]


# What takes longest begins first, so that all workers end together. Files that need the same minis
# are apart: else one worker waits for what the other makes.
LONGEST = (
    "minis/test_quantize_minis.py",
    "commands/test_cli.py",
    "minis/test_generator_recipes.py",
    "release/test_wheel.py",
    "pipeline/test_validate_mar.py",
    "pipeline/test_quantize_mar.py",
    "calibrate/test_shards.py",
    "benchmarks/test_freeze.py",
    "families/test_plugin.py",
    "families/var/test_export.py",
    "families/shared/test_raster_loop.py",
    "pipeline/test_custom_sizes.py",
    "pipeline/test_mar_calibration.py",
    "pipeline/test_validate_generator.py",
    "families/cosmos/test_write.py",
    "families/shared/test_cached_steps.py",
    "families/var_vqvae/test_parity.py",
    "engines/onnxruntime/test_generator.py",
    "engines/onnxruntime/test_mar.py",
    "families/gsq/test_export.py",
    "export/test_shape.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: k for k, name in enumerate(LONGEST)}
    tests = Path(__file__).parent
    problem = this_device().driver_problem
    for item in items:
        if problem is not None and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=problem))
    items.sort(key=lambda item: rank.get(str(item.path.relative_to(tests)), len(rank)))


@pytest.fixture(autouse=True, scope="session")
def _one_table_of_operators() -> Iterator[None]:
    """Have torch's exporter make its table of operators once, not for every graph in 1.1 s.

    Processes that tests start make their own.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib))
        )
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For loops of small operations: threads cost them more than they save, beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
