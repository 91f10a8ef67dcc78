"""Fixtures that every test may use; each is defined where its kind of thing is made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .export.checkpoint.hub import empty_cache, hub, no_hub, served
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
from .validate.diagnose.network import copied, diagnosed_network

__all__ = [
    "conv_case",
    "copied",
    "custom_files",
    "diagnosed_network",
    "empty_cache",
    "exported",
    "finished",
    "generator",
    "generators",
    "hub",
    "integer_case",
    "mini_of",
    "no_hub",
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For loops of small operations: threads cost them more than they save, beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
