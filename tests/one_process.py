"""An export's work in the process of the test: starting one and importing torch takes seconds.

Its request and its answer, errors among them, still go through their files. What
`tests/test_api.py` and a plug-in export has processes of its own.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arvg_trt.families.shared import isolated_export
from arvg_trt.workspace.worker_process import REQUEST, answer, result_of


def run_here(module: str, request: Any, result: type[Any], progress: object = None) -> Any:
    """Do what `run_isolated` has a second process do."""
    assert module == isolated_export.__name__
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch().context() as patched:
        (Path(folder) / REQUEST).write_bytes(msgspec.json.encode(request))
        patched.setattr(sys, "argv", [module, folder])
        answer(type(request), isolated_export.work)
        return result_of(Path(folder), result)


@contextmanager
def exporting_here() -> Iterator[None]:
    """Have generators exported in this process."""
    with pytest.MonkeyPatch().context() as patched:
        patched.setattr(isolated_export, "run_isolated", run_here)
        yield


@pytest.fixture
def one_process() -> Iterator[None]:
    with exporting_here():
        yield
