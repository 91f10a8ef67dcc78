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
from arvg_trt.validate.choice.front import Costs, costs, dominates, pareto_front, times_count
from arvg_trt.validate.choice.page import candidate_line, sweep_page
from arvg_trt.validate.choice.recommend import recommend
from arvg_trt.validate.compare.rules import RULES
from arvg_trt.validate.machine.watch import MachineLoad
from arvg_trt.validate.metrics.latency import Latency, ratio
from arvg_trt.validate.report.gates import parse_gates
from arvg_trt.validate.report.page import to_html, to_markdown
from arvg_trt.validate.report.render import write_report
from arvg_trt.validate.report.schema import METRIC_NAMES, Report, metrics

from ...command_line import arvg, assert_refused
from ..conftest import GreyCodec, MakeReport
from ..intervals.test_figures import with_outputs

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
        speedup=draw(st.one_of(st.none(), st.floats(0.2, 5))),
        speed=draw(st.sampled_from(("faster", "slower", "inconclusive"))),
    )


@given(found=st.lists(candidates(), min_size=1, max_size=8))
@pytest.mark.parametrize("rule", [DROP, PSNR], ids=lambda rule: rule.metric)
def test_none_of_the_front_is_beaten_and_all_others_are(
    rule: object, found: list[Candidate]
) -> None:
    front = pareto_front(found, rule)  # type: ignore[arg-type]
    timed = times_count(found)
    taken = {id(each): costs(each, rule, timed=timed) for each in found}  # type: ignore[arg-type]
    for each in found:
        beaten = any(dominates(taken[id(other)], taken[id(each)]) for other in found)
        measured = each.quality is not None and not math.isnan(each.quality)
        assert (each in front) == (measured and not beaten)
    if any(each.quality is not None and not math.isnan(each.quality) for each in found):
        assert front


def test_times_of_equal_engines_do_not_decide() -> None:
    def cost(loss: float, time: float) -> Costs:
        return Costs(loss, 10, time, sure=True)

    assert dominates(cost(1.0, 0.51), cost(2.0, 0.50))
    assert not dominates(cost(1.0, 0.54), cost(2.0, 0.50))
    assert not dominates(cost(1.0, 0.50), cost(1.0, 0.51))
    assert dominates(cost(1.0, 0.50), cost(1.0, 0.54))


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


def timed(
    report: Report, name: str, fp32_ms: float, engine_ms: float, *, busy: bool = False
) -> Report:
    """The report of a quantization that was timed beside FP32 in some moment of a machine."""
    fp32, engine = Latency.of([fp32_ms] * 10), Latency.of([engine_ms] * 10)
    row = msgspec.structs.replace(
        report.latency["total"], fp32=fp32, engine=engine, speed=ratio(fp32, engine)
    )
    load = MachineLoad(processors=4, others_during=1.3) if busy else None
    return msgspec.structs.replace(report, name=name, latency={"total": row}, machine=load)


@pytest.fixture
def timed_reports(tmp_path: Path, make_report: MakeReport) -> list[Path]:
    """Three of one quality: twice as fast in a slow moment, slower in a quick one, and equal."""
    exact = make_report().report
    made = [
        timed(exact, "fast", 40.0, 20.0, busy=True),
        timed(exact, "slow", 10.0, 12.5),
        timed(exact, "equal", 10.0, 10.0),
    ]
    return [save(report, tmp_path / "out" / report.name, make_report) for report in made]


def test_speeds_are_ranked_against_the_fp32_that_was_timed_in_turn(
    timed_reports: list[Path],
) -> None:
    found = read_candidates(timed_reports)
    assert [each.latency_ms for each in found.found] == [20.0, 12.5, 10.0]
    assert [each.speed for each in found.found] == ["faster", "slower", "inconclusive"]
    # The one whose speed is inconclusive beats none, and is not beaten for its speed alone.
    assert [each.name for each in pareto_front(found.found, found.rule)] == ["fast", "equal"]
    everything = parse_gates(["psnr_drop<=900"], METRIC_NAMES)
    assert recommend(found, everything).chosen == "fast"
    (key,) = (k for k in sweep_page(found, Path()).key_figures if k.label == "Fastest")
    assert key.value == "2.00\u00d7" and "busy machine" in key.detail and key.level == "warn"


def test_speeds_of_several_machines_do_not_count(timed_reports: list[Path]) -> None:
    found = read_candidates(timed_reports).found
    other = msgspec.structs.replace(found[0], timed_on="another processor")
    assert times_count(found) and not times_count([other, *found[1:]])
    assert pareto_front([other, *found[1:]], DROP) == [other, *found[1:]]


def test_a_busy_machine_is_marked_on_the_page_and_in_the_terminal(
    timed_reports: list[Path],
) -> None:
    found = read_candidates(timed_reports)
    page = sweep_page(found, Path())
    assert len(page.warnings) == 1 and page.warnings[0].startswith("fast: timed on a busy machine")
    text = to_markdown(page)
    assert "**2.00\u00d7, busy**" in text and "**1.00\u00d7, inconclusive**" in text
    assert "Speeds count here" in text
    line = candidate_line(found, found.found[0], beaten=False)
    assert line.startswith("fast: PSNR drop from FP32 ") and " MB, 20.00 ms (2.00\u00d7" in line
    assert line.endswith("faster than FP32, on a busy machine); beaten by none")
    shown = arvg("recommend", timed_reports[0].parent.parent, "--gate", "psnr_drop<=900").out
    first = shown.splitlines()[0]
    assert first.startswith("fast: psnr_drop ") and "on a busy machine): chosen" in first
    assert "(1.00\u00d7, inconclusive)" in shown


@pytest.fixture
def generator_report(tmp_path: Path, make_report: MakeReport) -> tuple[Report, Path]:
    """The report of a generator, and the folder that it lies below."""
    made = with_outputs(msgspec.structs.replace(make_report().report, accuracy={}))
    made = msgspec.structs.replace(made, outputs={})
    save(made, tmp_path / "out" / "w8a8", make_report)
    return made, tmp_path / "out"


def test_an_open_gate_names_the_option_that_decides_it(
    generator_report: tuple[Report, Path],
) -> None:
    made, out = generator_report
    value = metrics(made)["kl"]
    assert value is not None
    refused = arvg("recommend", out, "--gate", f"kl<={value * 1.1}@95%")
    assert refused.code == 13
    assert "validate w8a8 again with --samples " in refused.err


@pytest.mark.parametrize(
    "options", [("--gate", "psnr>=20"), ("--gate", "kl<=1", "--quality", "psnr")]
)
def test_a_metric_of_another_kind_names_those_that_exist(
    generator_report: tuple[Report, Path], options: tuple[str, ...]
) -> None:
    refused = arvg("recommend", generator_report[1], *options)
    assert_refused(refused, 3, "kl, top1")
    assert "psnr" in refused.err and "latency_ms" not in refused.err


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
