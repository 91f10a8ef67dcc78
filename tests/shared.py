"""Make exports and quantizations once for all test workers: they are most of the suite."""

from __future__ import annotations

import hashlib
import pickle
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import arvg_trt

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
KEPT = ROOT / ".pytest_cache" / "d" / "shared"
# No export runs these: one stays valid while they change.
AFTER_EXPORT = frozenset({"calibrate", "quantize", "engines", "validate", "api.py"})
NO_CODE = frozenset({"benchmarks", "training", "docs", "out", "build"})
LIBRARIES = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "numpy", "msgspec")


def made_once(
    factory: pytest.TempPathFactory,
    name: str,
    make: Callable[[Path], Any],
    *,
    unused: frozenset[str] = frozenset(),
) -> tuple[Path, Any]:
    """This worker's copy of a folder that the first worker to ask fills, and what `make` returned.

    The others wait for it. What `make` returns is pickled; paths in it are of the first folder.
    `unused` names rooms and modules that `make` does not run: the folder outlives their changes.
    """
    KEPT.mkdir(parents=True, exist_ok=True)
    folder, value = KEPT / name / digest(unused), KEPT / name / f"{digest(unused)}.pickle"
    with FileLock(KEPT / f"{name}.lock"):
        if not value.is_file():  # written last: a fixture that failed is made again
            shutil.rmtree(folder.parent, ignore_errors=True)  # with what older code made
            folder.mkdir(parents=True)
            value.write_bytes(pickle.dumps(make(folder)))
        copy = factory.mktemp(name) / "copy"
        shutil.copytree(folder, copy)
        return copy, pickle.loads(value.read_bytes())


@cache
def digest(unused: frozenset[str] = frozenset()) -> str:
    """Digest all that what is made depends on, without the parts of the package in `unused`."""
    found = hashlib.sha256(repr(versions()).encode())
    for path in sorted(sources(unused)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return found.hexdigest()[:16]


def versions() -> list[str]:
    libraries = [f"{name} {metadata.version(name)}" for name in installed(LIBRARIES)]
    return [sys.version, platform.machine(), *libraries]


def installed(names: tuple[str, ...]) -> Iterator[str]:
    """Distributions by the modules that they bring, such as onnxruntime-gpu."""
    brought = metadata.packages_distributions()
    for name in names:
        yield from sorted(set(brought.get(name, ())))


def sources(unused: frozenset[str]) -> Iterator[Path]:
    """Every file of the package and of the tests' builders; tests themselves make nothing."""
    for path in ROOT.iterdir():
        if path.name.startswith(".") or path.name in unused | NO_CODE:
            continue
        if path.is_dir():
            files = (p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
            yield from (p for p in files if not p.name.startswith("test_"))
        elif path.suffix == ".py":
            yield path
