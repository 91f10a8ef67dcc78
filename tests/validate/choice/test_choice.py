"""Quantizations of a model as candidates: their Pareto front, and the smallest that passes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.errors import RecipeError, WorkspaceError
from arvg_trt.pipeline.sweep import aligned, require_alike
from arvg_trt.recipe.file import load_recipe
from arvg_trt.validate.choice.candidates import Candidate, read_candidates, report_files
from arvg_trt.validate.choice.front import dominates, losses, pareto_front
from arvg_trt.validate.choice.page import sweep_page
from arvg_trt.validate.choice.recommend import recommend
from arvg_trt.validate.compare.rules import RULES
from arvg_trt.validate.report.gates import parse_gates
from arvg_trt.validate.report.page import to_html, to_markdown
from arvg_trt.validate.report.render import write_report
from arvg_trt.validate.report.schema import METRIC_NAMES, Report

from ...command_line import arvg, assert_refused
from ..conftest import GreyCodec, MakeReport

DROP = next(rule for rule in RULES if rule.metric == "psnr_drop")
PSNR = next(rule for rule in RULES if rule.metric == "psnr")
numbers = st.one_of(st.none(), st.floats(0, 10), st.just(math.nan))


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    return Candidate(
        name=draw(st.text("abc", min_size=1, max_size=3)),
        model="m",
        file="f",
        version="1",
        quality=draw(numbers),
        bytes=draw(st.integers(1, 20)),
        latency_ms=draw(st.one_of(st.none(), st.floats(1, 9))),
    )


@given(found=st.lists(candidates(), min_size=1, max_size=8))
@pytest.mark.parametrize("rule", [DROP, PSNR], ids=lambda rule: rule.metric)
def test_none_of_the_front_is_beaten_and_all_others_are(
    rule: object, found: list[Candidate]
) -> None:
    front = pareto_front(found, rule)  # type: ignore[arg-type]
    timed = all(each.latency_ms is not None for each in found)
    costs = {id(each): losses(each, rule, timed=timed) for each in found}  # type: ignore[arg-type]
    for each in found:
        beaten = any(dominates(costs[id(other)], costs[id(each)]) for other in found)
        measured = each.quality is not None and not math.isnan(each.quality)
        assert (each in front) == (measured and not beaten)
    if any(each.quality is not None and not math.isnan(each.quality) for each in found):
        assert front


def test_times_of_equal_engines_do_not_decide() -> None:
    assert dominates((1.0, 10.0, 5.1), (2.0, 10.0, 5.0))
    assert not dominates((1.0, 10.0, 5.4), (2.0, 10.0, 5.0))
    assert not dominates((1.0, 10.0, 5.0), (1.0, 10.0, 5.1))
    assert dominates((1.0, 10.0, 5.0), (1.0, 10.0, 5.4))


def save(report: Report, folder: Path, make_report: MakeReport) -> Path:
    folder.mkdir(parents=True)
    write_report(folder, report, make_report().pictures)
    return folder / "report.json"


def sized(report: Report, name: str, share: float) -> Report:
    """The report of a quantization that takes so much of its bytes."""
    running = {k: round(v * share) for k, v in report.sizes.running_bytes.items()}
    smaller = msgspec.structs.replace(report.sizes, running_bytes=running)
    return msgspec.structs.replace(report, name=name, sizes=smaller)


@pytest.fixture
def reports(tmp_path: Path, make_report: MakeReport) -> list[Path]:
    """Three: one exact and large, one worse and small, one worse and as large as the first."""
    exact, worse = make_report().report, make_report(engine=GreyCodec(gain=0.7)).report
    made = {
        "exact": sized(exact, "exact", 1.0),
        "small": sized(worse, "small", 0.5),
        "bad": sized(worse, "bad", 1.0),
    }
    return [save(report, tmp_path / "out" / name, make_report) for name, report in made.items()]


def test_candidates_are_read_with_their_interval_and_beaten_ones_are_told(
    reports: list[Path],
) -> None:
    found = read_candidates(reports)
    assert found.rule.metric == "psnr_drop" and found.sized == "on disk"
    assert [each.name for each in pareto_front(found.found, found.rule)] == ["exact", "small"]
    assert found.reference is not None and found.reference.bytes == 4_200_000
    page = sweep_page(found, reports[0].parent.parent)
    text = to_markdown(page)
    assert "2 of 3 are beaten by none" in text and "| [bad](bad/report.html) | another |" in text
    assert to_html(page).count("<svg") >= 1


def test_the_smallest_that_passes_is_recommended_and_the_others_have_a_reason(
    reports: list[Path],
) -> None:
    drops = {each.name: each.quality for each in read_candidates(reports).found}
    assert drops["exact"] is not None and drops["small"] is not None
    between = (drops["exact"] + drops["small"]) / 2
    strict = parse_gates([f"psnr_drop<={between}"], METRIC_NAMES)
    found = recommend(read_candidates(reports), strict)
    assert found.chosen == "exact"
    assert [each.name for each in found.considered] == ["small", "exact", "bad"]
    assert "psnr_drop is" in found.considered[0].reasons[0]
    loose = parse_gates(["psnr_drop<=900"], METRIC_NAMES)
    assert recommend(read_candidates(reports), loose).chosen == "small"
    other = recommend(read_candidates(reports), loose, target="sm75")
    assert other.chosen is None
    assert other.considered[0].reasons == ("has no engine for sm75, but for rtx4090",)


def test_the_command_names_it_and_ends_with_eight_where_nothing_passes(
    reports: list[Path],
) -> None:
    out = reports[0].parent.parent
    shown = arvg("recommend", out, "--gate", "psnr_drop<=900")
    assert shown.code == 0 and shown.out.splitlines()[0].endswith(": chosen")
    found = json.loads(arvg("recommend", out, "--gate", "psnr_drop<=900", "--json").out)
    assert found["chosen"] == "small"
    assert_refused(arvg("recommend", out, "--gate", "psnr_drop<=-900"), 8, "psnr_drop is")
    assert_refused(arvg("recommend", out, "--gate", "psnr_dorp<=1"), 3, "psnr_drop")


@pytest.mark.parametrize(
    ("quality", "message"), [("kl", "kl was not measured"), ("qualty", "no metric 'qualty'")]
)
def test_a_metric_that_is_not_there_is_refused(
    quality: str, message: str, reports: list[Path]
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_candidates(reports, quality)


def test_reports_of_two_models_and_empty_folders_are_refused(
    reports: list[Path], tmp_path: Path, make_report: MakeReport
) -> None:
    other = msgspec.structs.replace(make_report().report, model="another")
    mixed = [*reports, save(other, tmp_path / "other", make_report)]
    with pytest.raises(RecipeError, match="several models: another"):
        read_candidates(mixed)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"no report\.json there"):
        report_files([tmp_path / "empty"])
    with pytest.raises(WorkspaceError, match="nothing: no such file or folder"):
        report_files([tmp_path / "empty", tmp_path / "nothing"])


def test_recipes_of_a_sweep_share_all_but_how_they_quantize() -> None:
    first, second = load_recipe("var-w8a8"), load_recipe("var-w6a6")
    both = aligned([first, second])
    require_alike(both)
    assert both[1].calibrate == first.calibrate and both[1].quantize == second.quantize
    assert both[1].validate.gates == second.validate.gates
    with pytest.raises(RecipeError, match="two recipes are called w8a8"):
        require_alike([first, first])
    with pytest.raises(RecipeError, match="w8a8 and w8a8-rar differ in model"):
        renamed = msgspec.structs.replace(load_recipe("rar-w8a8"), name="w8a8-rar")
        require_alike([first, renamed])
