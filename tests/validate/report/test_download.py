"""A report says of a download what its parts and form are, and what it takes where it is opened."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from arvg_trt.errors import WorkspaceError
from arvg_trt.validate.download import Download
from arvg_trt.validate.facts import ValidationFacts, download_line
from arvg_trt.validate.index import make_index
from arvg_trt.validate.report.files import encode_report, load_report
from arvg_trt.validate.report.page import KeyFigure, to_markdown
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import Report, metrics, sizes

from ..conftest import MakeReport

PACKED = Download(
    candidate="engine",
    form="packed",
    parts={"few_bits": 300_000, "high_precision": 500_000, "graphs": 40_000, "index": 2_000},
    expanded_bytes=1_250_000,
)


def with_download(report: Report, download: Download | None, **memory: int) -> Report:
    known = report.sizes
    made = sizes(
        fp32_graph_bytes=known.fp32_graph_bytes,
        fp32_weight_bytes=known.fp32_weight_bytes,
        packed_weight_bytes=known.packed_weight_bytes,
        fp32_running_bytes=4_210_000,
        running_bytes=known.running_bytes,
        download=download,
        memory_bytes=memory,
    )
    return msgspec.structs.replace(report, sizes=made)


def size_figure(report: Report) -> KeyFigure:
    figures = report_page(report, []).key_figures
    return next(each for each in figures if "smaller" in each.value)


def test_the_headline_is_the_packed_download_with_its_largest_part(
    make_report: MakeReport, tmp_path: Path
) -> None:
    report = with_download(make_report().report, PACKED, fp32=20_000_000, engine=9_000_000)
    figure = size_figure(report)
    assert (figure.label, figure.value) == ("Packed download", "5.00\u00d7 smaller")
    assert "4.21 MB to 842.0 kB, what stays in high precision 500.0 kB of it" in figure.detail
    assert "runs expanded, 3.51\u00d7 smaller: 1.20 MB, Engine as executed" in figure.detail
    text = to_markdown(report_page(report, []))
    for line in (
        "| Packed download, Engine as executed | 842.0 kB |",
        "| of it weights in few bits | 300.0 kB |",
        "| of it what stays in high precision | 500.0 kB |",
        "| of it graphs | 40.0 kB |",
        "| Engine as executed, its whole folder expanded | 1.25 MB |",
        "| FP32, in memory at its peak | 20.00 MB |",
        "| Engine as executed, in memory at its peak | 9.00 MB |",
    ):
        assert line in text
    assert metrics(report)["download_compression"] == 5.0
    (tmp_path / "report.json").write_bytes(encode_report(report))
    assert load_report(tmp_path) == report
    (row,) = make_index([tmp_path], tmp_path).reports
    assert row.on_disk.endswith("; packed download 842.0 kB")


def test_plans_are_downloaded_as_they_are(make_report: MakeReport) -> None:
    plans = Download(candidate="engine", form="engine", parts={"engines": 7}, expanded_bytes=7)
    report = with_download(make_report().report, plans)
    assert size_figure(report).label == "What runs, on disk"
    assert "| Download, Engine as executed | 7 B |" in to_markdown(report_page(report, []))


def test_a_report_of_an_older_version_has_no_download(make_report: MakeReport) -> None:
    report = with_download(make_report().report, None)
    assert size_figure(report).label == "What runs, on disk"
    assert metrics(report)["download_compression"] is None
    assert "ownload," not in to_markdown(report_page(report, []))


def test_the_terminal_says_what_is_downloaded() -> None:
    found = {"packed_compression": 4.0, "download_compression": 5.0}
    both = ValidationFacts(metrics=found, download=PACKED.line)
    assert download_line(both) == (
        "packed download (`bundle --packed`) 5.00\u00d7 smaller, "
        "quantized weights alone 4.00\u00d7 smaller"
    )
    alone = msgspec.structs.replace(PACKED, candidate="qdq")
    assert alone.line.startswith("packed Q/DQ graphs (no engine was run;")
    older = ValidationFacts(metrics={"packed_compression": 4.0})
    assert download_line(older) == "quantized weights alone 4.00\u00d7 smaller"


def test_a_download_of_nothing_is_refused(make_report: MakeReport) -> None:
    nothing = Download(candidate="qdq", form="packed", parts={}, expanded_bytes=0)
    with pytest.raises(WorkspaceError, match="nothing to download"):
        with_download(make_report().report, nothing)
