"""Read and write report.json; reports of version 1 are read too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from ...errors import WorkspaceError
from ...workspace.files import decode_json, encode_json
from ..metrics.latency import Latency, ratio
from .schema import REPORT_FILE, SCHEMA, Report

VERSION_1 = "arvg-trt/report/v1"


def encode_report(report: Report) -> bytes:
    """Return the bytes of report.json, the same for equal reports.

    Raises:
        ValueError: a number is not finite, which JSON would silently turn into null.
    """
    _require_finite(msgspec.to_builtins(report), "report")
    return encode_json(report)


def load_report(path: Path) -> Report:
    """Read a report.json, or the one in a folder.

    Raises:
        WorkspaceError: it is missing, damaged, or of another schema.
    """
    path = path / REPORT_FILE if path.is_dir() else path
    do = "run `arvg-trt validate` to write a report"
    data = decode_json(path, dict[str, Any], do=do)
    if "schema" not in data:
        raise WorkspaceError("names no schema, so it is no report", where=str(path), do=do)
    if data["schema"] != VERSION_1:
        return decode_json(path, Report, do=do)
    try:
        return msgspec.convert(upgraded(data), Report)
    except (msgspec.ValidationError, AttributeError, KeyError, TypeError) as error:
        raise WorkspaceError(f"cannot be read: {error}", where=str(path), do=do) from error


def upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of a version 1 report as version 2 has it.

    A gate had passed or failed. A speed was the median of the rounds' ratios, with their
    quartiles; its rounds are there, so that the ratio of medians and its interval are computed.
    """
    gates = [
        {**gate, "verdict": "passed" if gate["passed"] else "failed"}
        for gate in data.get("gates", ())
    ]
    latency = {}
    for part, row in data.get("latency", {}).items():
        pair = [msgspec.convert(row[name], Latency) for name in ("fp32", "engine")]
        latency[part] = {**row, "speed": msgspec.to_builtins(ratio(pair[0], pair[1]))}
    return {**data, "schema": SCHEMA, "gates": gates, "latency": latency}


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}")
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, child in children:
        _require_finite(child, f"{where}.{key}")
