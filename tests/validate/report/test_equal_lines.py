"""Lines of tables that would be equal are one, with their number."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.engines.facts import EngineProof, EngineRow, SiteException
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.validate.formats import METRICS, TIMES, metric_text, size
from arvg_trt.validate.measure.sizes import WEIGHTS_OF_ALL
from arvg_trt.validate.report.cells import NAMED, joined, numbered
from arvg_trt.validate.report.engine_tables import smaller_text
from arvg_trt.validate.report.page import Table
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import METRIC_NAMES, Report

from ..conftest import MakeReport


def table(report: Report, title: str) -> Table:
    (found,) = (each for each in report_page(report, []).tables if each.title == title)
    return found


def row(graph: str, **changes: object) -> EngineRow:
    made = EngineRow(
        backend="tensorrt_rtx",
        target="sm75",
        precision="FP16",
        graph=graph,
        bytes=1_000_000,
        build_seconds=0.25,
        int8_sites_planned=0,
        int8_sites_proved=0,
        proof=EngineProof(macs=1, shares={"FP16": 1.0}, kernels=5, constant_bytes={"FP32": 8}),
        status="built, not executed",
    )
    return msgspec.structs.replace(made, **changes)


def test_sites_with_one_reason_share_a_line(make_report: MakeReport) -> None:
    def exceptions(*names: str, why: str) -> tuple[SiteException, ...]:
        return tuple(SiteException(site=name, reason=why) for name in names)

    many = [f"encoder.{k}" for k in range(43)]
    engines = (
        row("encoder", exceptions=exceptions(*many, why="no kernel")),
        row("decoder", exceptions=exceptions("a", "b", why="no kernel")),
        row("decoder", target="sm89", exceptions=exceptions("a", why="other")),
    )
    found = table(
        msgspec.structs.replace(make_report().report, engines=engines),
        "Sites an engine does not run as planned",
    )
    assert found.rows == (
        ("45 sites: encoder.0 to b", "sm75", "encoder, decoder", "no kernel"),
        ("a", "sm89", "decoder", "other"),
    )


def test_numbered_graphs_that_are_alike_share_a_line_with_their_sums(
    make_report: MakeReport,
) -> None:
    engines = (
        row("step", int8_sites_planned=24, int8_sites_proved=24),
        *(row(f"update.{k}") for k in range(3)),
        row("update.0", target="sm89"),
        row("update.1", target="sm89", precision="BF16"),
    )
    report = msgspec.structs.replace(make_report().report, engines=engines)
    found = [tuple(map(str, cells)) for cells in table(report, "Engines").rows]
    shown = [(r[0], r[2], r[3], r[4], r[6], r[7]) for r in found]
    assert shown == [
        ("sm75", "step", "FP16", "1.00 MB", "0.2 s", "24 proved of 24"),
        ("sm75", "update.0-2", "FP16", "3.00 MB", "0.8 s", "none planned"),
        ("sm89", "update.0", "FP16", "1.00 MB", "0.2 s", "none planned"),
        ("sm89", "update.1", "BF16", "1.00 MB", "0.2 s", "none planned"),
    ]
    proofs = table(report, "What engines compute in").rows
    assert [(r[0], r[5], r[6]) for r in proofs[:2]] == [
        ("step", "5, 0 only convert", "8 B FP32"),
        ("update.0-2", "15, 0 only convert", "24 B FP32"),
    ]


def test_sites_alike_that_are_not_quantized_share_a_line(make_report: MakeReport) -> None:
    def site(name: str, **changes: object) -> SiteRow:
        made = SiteRow(name=name, graph="full", weight="-", activation="float", reason="fused")
        return msgspec.structs.replace(made, **changes)

    sites = (
        *(site(f"blocks.{k}.bmm") for k in range(9)),
        site("qkv", weight="INT8", weight_sqnr_db=40.0),
        site("proj", weight="INT8", weight_sqnr_db=40.0),
        site("head", reason="last"),
    )
    found = table(msgspec.structs.replace(make_report().report, sites=sites), "Sites")
    assert [r[0] for r in found.rows] == [
        "9 sites: blocks.0.bmm to blocks.8.bmm",
        "qkv",
        "proj",
        "head",
    ]


def test_what_was_timed_alike_is_said_once(make_report: MakeReport) -> None:
    report = make_report().report
    total = report.latency["total"]
    alike = msgspec.structs.replace(report, latency={"encoder": total, "total": total})
    assert "image 1 \u00d7 3 \u00d7 24 \u00d7 20, 2 threads, 10 rounds." in (
        table(alike, "Latency").caption
    )
    other = msgspec.structs.replace(total, threads=0)
    unlike = msgspec.structs.replace(report, latency={"encoder": other, "total": total})
    caption = table(unlike, "Latency").caption
    assert "encoder: image" in caption and "total: image" in caption and "all threads" in caption


names = st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=20)


@given(names)
def test_joined_names_or_counts_them(found: list[str]) -> None:
    text = joined(found, "sites")
    if len(found) <= NAMED:
        assert text.split(", ") == found
    else:
        assert text == f"{len(found)} sites: {found[0]} to {found[-1]}"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (["update.0", "update.1", "update.2"], "update.0-2"),
        (["update.0", "update.2"], "update.0, update.2"),
        (["update.3"], "update.3"),
        (["step"], "step"),
        (["step", "step"], "step, step"),
    ],
)
def test_numbered_graphs_are_a_range_only_without_a_gap(found: list[str], text: str) -> None:
    assert numbered(found) == text


def test_every_metric_has_a_format() -> None:
    assert {name.rpartition(".")[2] for name in METRIC_NAMES} == set(METRICS)
    for name in METRIC_NAMES:
        assert metric_text(name, None) == "not measured"
        assert any(letter.isdigit() for letter in metric_text(name, 0.5))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (12, "12 B"), (160, "0.2 kB"), (999_900, "999.9 kB"), (10**6, "1.00 MB")],
)
def test_small_sizes_are_not_zero(count: int, text: str) -> None:
    assert size(count) == text


def test_an_engine_has_its_ratio_to_the_graphs_that_it_was_built_from() -> None:
    rows = [row("a"), row("b")]  # of 1 MB each
    assert smaller_text(rows[:1], {"a": 4_000_000, "b": 6_000_000}) == TIMES(4)
    assert smaller_text(rows, {"a": 4_000_000, "b": 6_000_000}) == TIMES(5)
    shared = {"a": 1_000, "b": 1_000, WEIGHTS_OF_ALL: 7_998_000}
    assert smaller_text(rows, shared) == TIMES(4) and smaller_text(rows[:1], shared) == ""
    assert smaller_text(rows, {"structure of all graphs": 5}) == ""
