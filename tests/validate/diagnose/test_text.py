"""A terminal and a page say which samples a diagnosis took and which raised sites did best."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from arvg_trt.validate.diagnose.facts import Diagnosis, Raised, SiteDiagnosis
from arvg_trt.validate.diagnose.render import diagnosis_page, terminal_lines
from arvg_trt.validate.diagnose.text import best_text, engine_text, samples_text, unpredicted_text

from ..report.charts.test_chart import NAMES

SITE = SiteDiagnosis(
    name="head",
    graph="graph0",
    part="net",
    weight="int8",
    activation="int8",
    finite=True,
    accumulated_db=22.0,
    alone_db=22.0,
    model_db=22.0,
    share=1.0,
)


def diagnosis(
    measured: Sequence[float | None] = (),
    predicted: float | None = 24.0,
    *,
    base: float | None = 22.0,
    taken: int = 12,
    given: int = 12,
    graphs: int = 1,
    runs: int | None = None,
) -> Diagnosis:
    count = (taken if runs is None else runs) * graphs
    separate = count > graphs
    return Diagnosis(
        model="mine",
        name="int8",
        samples=tuple(f"held:{k}" for k in range(taken)),
        given=given,
        samples_from="held-out",
        ranked_on=(count + 1) // 2,
        measured_on=count // 2 if separate else graphs,
        separate=separate,
        graphs={f"graph{k}": 22.0 for k in range(graphs)},
        model_db=22.0,
        held_out_db=base,
        explained=1.0,
        shares={},
        first_not_finite=None,
        odd_scales=(),
        sites=(SITE,),
        raised=tuple(
            Raised(
                name=f"{NAMES[0]}.{k}",
                graph="graph0",
                to="float16",
                kib=1.0,
                predicted_db=predicted,
                measured_db=value,
            )
            for k, value in enumerate(measured)
        ),
        exclude=(),
    )


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (diagnosis(), "ranked on 6 of 12 samples, measured on 6"),
        (diagnosis(graphs=2), "ranked on 6 of 12 samples, measured on 6"),
        (
            diagnosis(taken=4),
            "ranked on 2 of 12 samples, measured on 2 (the first 4 were taken: --samples takes "
            "more)",
        ),
        (diagnosis(taken=1, given=1), "ranked on 1 of 1 samples, measured on the same"),
        (
            diagnosis(taken=4, given=4, runs=40),
            "ranked on 20 runs of 4 of 4 samples, measured on 20",
        ),
    ],
)
def test_how_many_samples_were_taken_of_how_many_is_said(found: Diagnosis, text: str) -> None:
    assert samples_text(found) == text


@pytest.mark.parametrize(
    ("measured", "base", "text"),
    [
        (
            (24.32, 23.9, 24.0, 23.2),
            22.0,
            "best measured: the first 1 (24.32 dB); --raise 1 writes that",
        ),
        ((23.0, 24.0), 22.0, "best measured: all 2 (24.00 dB)"),
        ((23.0, 22.5), 25.0, "best measured: none of them raised (25.00 dB)"),
        ((23.0,), 22.0, ""),
        ((None, None), 22.0, ""),
    ],
)
def test_the_number_of_raised_sites_that_measured_best_is_said(
    measured: tuple[float | None, ...], base: float, text: str
) -> None:
    found = diagnosis(measured, base=base)
    assert best_text(found) == text
    assert (text in list(terminal_lines(found))) == bool(text)
    (table,) = (t for t in diagnosis_page(found).tables if t.title == "Raise these sites")
    assert text[1:] in table.caption and "raises all of them, as --raise says" in table.caption


def test_a_missing_prediction_is_explained() -> None:
    assert unpredicted_text(diagnosis((23.0,))) == ""
    found = diagnosis((23.0,), None)
    assert unpredicted_text(found).endswith("more than the whole: they do not act one by one")
    assert unpredicted_text(found) in list(terminal_lines(found))
    broken = msgspec.structs.replace(found, first_not_finite="head")
    assert "an error is not finite" in unpredicted_text(broken)
    without = msgspec.structs.replace(found, held_out_db=None)
    assert "have no error" in unpredicted_text(without)


def test_an_engine_far_below_its_graph_is_said_with_what_to_do() -> None:
    plain = diagnosis(base=40.93)
    of_graph = "figures are of the Q/DQ graph, which an engine for a GPU computes"
    assert engine_text(plain) == of_graph
    near = msgspec.structs.replace(plain, engine_db=39.0)
    assert (
        engine_text(near) == f"{of_graph}; ONNX Runtime's engine has 39.00 dB on the same samples"
    )
    far = engine_text(msgspec.structs.replace(plain, engine_db=32.8))
    assert "has 32.80 dB on the same samples, 8.13 dB below it: it also rounds what" in far
    assert far.endswith("calibrate on more samples, or try --backend openvino")
    assert far in list(terminal_lines(msgspec.structs.replace(plain, engine_db=32.8)))
