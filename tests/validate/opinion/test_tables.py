"""Second opinions in a report and in a terminal."""

from __future__ import annotations

import msgspec

from arvg_trt.validate.opinion.facts import FigureOpinion, Opinions, SecondOpinion
from arvg_trt.validate.opinion.run import warnings_of
from arvg_trt.validate.opinion.tables import opinion_tables, opinions_line
from arvg_trt.validate.report.compose import with_opinions
from arvg_trt.validate.report.page import to_html, to_markdown
from arvg_trt.validate.report.render import report_page
from arvg_trt.validate.report.schema import Report

from ..conftest import MakeReport

AGREES = SecondOpinion(
    candidate="qdq",
    graph="encoder",
    outputs=2,
    max_error=1e-7,
    agrees=True,
    samples=4,
    relative_error=2e-7,
    equal=1.0,
    limit="of the test",
)
DIFFERS = msgspec.structs.replace(
    AGREES, candidate="fp32", by="torch", max_error=None, relative_error=None, agrees=False
)
FIGURE = FigureOpinion(
    graph="decoder", output="image", by="torch", ours_db=37.41, theirs_db=31.0, samples=4
)
NOT_RUN = "TensorRT by Polygraphy's TrtRunner: not executed here, there is no GPU"


def reported(make_report: MakeReport) -> Report:
    found = Opinions(graphs=(AGREES, DIFFERS), figures=(FIGURE,), not_run=(NOT_RUN,))
    return with_opinions(make_report().report, found)


def test_a_report_says_what_agrees_what_differs_and_what_was_not_run(
    make_report: MakeReport,
) -> None:
    report = reported(make_report)
    graphs, figures = opinion_tables(report)
    assert [str(row[-1]) for row in graphs.rows] == ["agrees", "differs"]
    assert [row[4] for row in graphs.rows] == ["1e-07", "not finite"]
    assert (
        figures.rows[0][3:5] == ("37.41 dB", "31.00 dB") and str(figures.rows[0][-1]) == "differs"
    )
    for text in (to_html(report_page(report, [])), to_markdown(report_page(report, []))):
        assert "Not run: TensorRT by Polygraphy" in text.replace("&#39;", "'")
        assert "differs" in text and "37.41 dB" in text


def test_a_terminal_has_a_line_and_warnings_of_what_differs(make_report: MakeReport) -> None:
    report = reported(make_report)
    assert opinions_line(report) == (
        "second opinion: Polygraphy agrees on 1 of 1 graphs; "
        "PyTorch agrees on 0 of 1 graphs, 0 of 1 figures; "
        "not run: TensorRT by Polygraphy's TrtRunner"
    )
    found = Opinions(graphs=(AGREES, DIFFERS), figures=(FIGURE,))
    assert list(warnings_of(found)) == [
        "encoder of fp32: PyTorch's outputs are not those here",
        "decoder/image: by torch the quantization is 6.41 dB from what was measured here",
    ]


def test_without_a_second_opinion_nothing_is_said(make_report: MakeReport) -> None:
    report = make_report().report
    assert opinions_line(report) == ""
    assert "econd opinion" not in to_markdown(report_page(report, []))
