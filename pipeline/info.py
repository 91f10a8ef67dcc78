"""Commands that only look: models, comparisons, what an artifact is, what this machine can do."""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from ..engines.verdicts import TARGETS
from ..errors import ArvgError, WorkspaceError
from ..runtime.trt_compat import device_compute_capability, load_builder
from ..workspace.files import atomic_write, decode_json
from ..workspace.manifest import MANIFEST, Manifest
from .analyze import analyze_files


def model_rows() -> list[dict[str, Any]]:
    """The models that are known by name, as plain rows."""
    from ..families.registry import MODELS, all_variants

    return [
        {
            "name": entry.name,
            "family": entry.family,
            "parameters": entry.parameters,
            "graphs": list(entry.graphs),
            "files": [list(names) for names in entry.files],
            "checkpoint": ", ".join(dict.fromkeys((entry.hub, *entry.elsewhere.values())))
            if entry.hub
            else ("shipped" if (MODELS / entry.name).is_dir() else "train it: training/"),
        }
        for entry in all_variants()
    ]


def compare_reports(
    paths: Sequence[Path], html: Path | None, allow_different: bool
) -> tuple[str, dict[str, Any], bool]:
    """(markdown, plain rows, whether anything regressed); folders stand for their report.json."""
    from ..validate.report.compare import compare, comparison_html, comparison_markdown
    from ..validate.report.schema import load_report

    if len(paths) < 2:
        raise WorkspaceError("one report cannot be compared", do="name two or more")
    files = [p / "report.json" if p.is_dir() else p for p in paths]
    labelled = [(str(path), load_report(path)) for path in files]
    found = compare(labelled, allow_different=allow_different)
    if html is not None:
        atomic_write(html, comparison_html(found).encode())
    rows = [
        {
            "metric": row.rule.metric,
            "better": row.rule.better,
            "tolerance": row.rule.tolerance_text,
            "cells": [
                {
                    "value": finite_or_text(cell.value),
                    "change": finite_or_text(cell.change),
                    "verdict": cell.verdict,
                }
                for cell in row.cells
            ],
        }
        for row in found.rows
    ]
    result = {
        "labels": list(found.labels),
        "warnings": list(found.warnings),
        "rows": rows,
        "regressed": found.regressed,
    }
    return comparison_markdown(found), result, found.regressed


def finite_or_text(value: float | None) -> float | str | None:
    """JSON has no infinity: decibels without any error are the text "inf"."""
    return value if value is None or math.isfinite(value) else str(value)


def inspect_path(path: Path) -> dict[str, Any]:
    """Key facts of a workspace, a stage folder, an ONNX graph or an engine file."""
    if not path.exists():
        raise WorkspaceError("no such file or folder", where=str(path))
    if path.is_dir():
        if (path / "workspace.json").is_file():
            stages = sorted(p.parent.relative_to(path) for p in path.glob(f"**/{MANIFEST}"))
            return {"kind": "workspace", "stages": [str(s) for s in stages if not hidden(s)]}
        manifest = decode_json(path / MANIFEST, Manifest, do="name a workspace or a stage's folder")
        return {
            "kind": f"output of {manifest.stage}",
            "key": manifest.key(),
            "options": manifest.options,
            "versions": manifest.versions,
            "files": {
                n: (path / n).stat().st_size for n in manifest.outputs if (path / n).exists()
            },
        }
    if path.suffix == ".onnx":
        return inspect_graph(path)
    with path.open("rb") as stream:
        head = stream.read(28)
    if path.suffix == ".engine" or head[:4] == b"vtrt":
        built = ".".join(str(b) for b in head[24:28]) if head[:4] == b"vtrt" else "unknown"
        return {"kind": "TensorRT engine", "bytes": path.stat().st_size, "builder": built}
    raise WorkspaceError("is nothing that arvg-trt writes", where=str(path))


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def inspect_graph(path: Path) -> dict[str, Any]:
    from ..graph.io import read_proto

    model = read_proto(path, do="name a whole file")
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return {
        "kind": "ONNX graph",
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "inputs": [describe_value(v) for v in model.graph.input],
        "outputs": [describe_value(v) for v in model.graph.output],
        "nodes": dict(sorted(counts.items(), key=lambda kv: -kv[1])),
        "metadata": {p.key: p.value for p in model.metadata_props},
        "verdicts": verdicts_of(path),
    }


def verdicts_of(path: Path) -> dict[str, Any]:
    """Nodes by target and verdict, as `analyze` counts them, or why the file is not taken."""
    (found,) = analyze_files([path], TARGETS)
    return found.counts if found.refused is None else {"refused": found.refused}


def describe_value(value: Any) -> str:
    tensor = value.type.tensor_type
    dims = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
    return f"{value.name} [{dims}]"


def doctor_rows() -> list[dict[str, str]]:
    """State (ok, missing, problem), what, and detail or what to do."""
    rows = [row("ok", "python", platform.python_version()), onnxruntime_row()]
    for package, extra, use in (
        ("torch", "export", "export of checkpoints"),
        ("onnx", "export", "export, FP16 copies"),
        ("scikit-image", "report", "SSIM and sample photographs"),
        ("jinja2", "report", "HTML reports"),
    ):
        found = installed(package)
        detail = found or f"for {use}: pip install 'arvg-trt[{extra}]'"
        rows.append(row("ok" if found else "missing", package, detail))
    for backend in ("tensorrt_rtx", "tensorrt"):
        try:
            builder = load_builder(backend)
        except ArvgError as error:
            rows.append(row("missing", backend, str(error)))
        else:
            how = "compiles for named GPUs" if builder.ahead_of_time else "builds for this GPU"
            rows.append(row("ok", backend, f"{builder.version}, {how}"))
    gpu = device_compute_capability()
    rows.append(
        row("ok", "GPU", f"sm{gpu}")
        if gpu
        else row("missing", "GPU", "engines are built, not executed; ONNX Runtime runs on the CPU")
    )
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows.append(row("ok" if free > 2 else "problem", "free disk here", f"{free:.1f} GiB"))
    return rows


def onnxruntime_row() -> dict[str, str]:
    """The CPU and GPU wheels overwrite each other's files: having both is a broken install."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed(name)]
    if len(found) == 2:
        return row(
            "problem",
            "onnxruntime",
            "both onnxruntime and onnxruntime-gpu are installed: pip uninstall both, install one",
        )
    if not found:
        return row("missing", "onnxruntime", "pip install onnxruntime")
    return row("ok", found[0], version(found[0]))


def installed(package: str) -> str | None:
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def row(state: str, what: str, detail: str) -> dict[str, str]:
    return {"state": state, "what": what, "detail": detail}
