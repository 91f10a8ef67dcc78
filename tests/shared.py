"""Make exports and quantizations once for all test workers: they are most of the suite."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]
) -> tuple[Path, Any]:
    """This worker's copy of a folder that the first worker to ask fills, and what `make` returned.

    The others wait for it. What `make` returns is pickled; paths in it are of the first folder.
    """
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, value = root / f"shared-{name}", root / f"shared-{name}.pickle"
    with FileLock(root / f"shared-{name}.lock"):
        if not value.is_file():  # written last: a fixture that failed is made again
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            value.write_bytes(pickle.dumps(make(folder)))
    copy = factory.mktemp(name) / "copy"
    shutil.copytree(folder, copy)
    return copy, pickle.loads(value.read_bytes())
