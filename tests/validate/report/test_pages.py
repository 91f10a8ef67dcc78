"""Reports in a browser: nothing is cut, said to the console or loaded, on any screen or paper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arvg_trt.engines.facts import EngineProof, EngineRow, SiteException
from arvg_trt.quantize.facts import SiteRow
from arvg_trt.validate.compare.compare import compare
from arvg_trt.validate.compare.page import comparison_html
from arvg_trt.validate.index import IndexedBundle, ReportIndex, make_index
from arvg_trt.validate.index_page import index_page
from arvg_trt.validate.machine.gpu import GpuState
from arvg_trt.validate.machine.start import Starts
from arvg_trt.validate.machine.watch import MachineLoad
from arvg_trt.validate.measure.generator_accuracy import GeneratedImageAccuracy, GeneratorAccuracy
from arvg_trt.validate.metrics.latency import Latency, ratio
from arvg_trt.validate.metrics.summary import Summary
from arvg_trt.validate.opinion.facts import FigureOpinion, SecondOpinion
from arvg_trt.validate.report.files import encode_report
from arvg_trt.validate.report.page import Page, Table, to_html
from arvg_trt.validate.report.render import report_page, write_report
from arvg_trt.validate.report.schema import Data, Report

from ...browser import NOT_INSTALLED, Browser, find_browser, open_browser
from ..conftest import MakeReport

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NOT_INSTALLED)

PHONE, DESKTOP, PAPER = 390, 1280, 718  # A4 with its margins, at 96 pixels an inch
LONG = "a_name_of_an_image_without_any_place_where_a_line_may_break_" * 2
KINDS = ("tokenizer", "generator", "comparison", "index")

OPEN_ALL = "document.querySelectorAll('details').forEach(each => { each.open = true })"
# Elements that reach over an edge of the page or of the box that they lie in.
CUT = """(() => {
  const width = document.documentElement.clientWidth, found = [];
  for (const each of document.querySelectorAll('main *')) {
    const box = each.getBoundingClientRect();
    if (box.right > width + 0.5 || box.left < -0.5) found.push([each.tagName, each.textContent]);
    const style = getComputedStyle(each);
    if (each.scrollWidth > each.clientWidth + 1 && style.overflowX !== 'visible')
      found.push([each.tagName, each.className, each.scrollWidth, each.clientWidth]);
  }
  return JSON.stringify([document.documentElement.scrollWidth - width, found.slice(0, 5)]);
})()"""
# Cells with text that takes no place on the page.
HIDDEN = """JSON.stringify([...document.querySelectorAll('td, tbody th, li, p')].filter(each =>
  each.textContent.trim() && !(each.checkVisibility() && each.getBoundingClientRect().height > 5)
).map(each => each.textContent))"""
# The least contrast (WCAG 2) of a text with what it lies on.
CONTRAST = """(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = text => numbers(text).slice(0, 3).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = each => {
    const found = getComputedStyle(each).backgroundColor;
    const clear = found === 'transparent' || numbers(found)[3] === 0;
    return clear && each.parentElement ? ground(each.parentElement) : found;
  };
  let least = [99, ''];
  for (const each of document.querySelectorAll('body *')) {
    if (![...each.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (each.tagName === 'title' || !each.checkVisibility()) continue;
    const style = getComputedStyle(each);
    const [a, b] = [light(each.tagName === 'text' ? style.fill : style.color), light(ground(each))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, each.textContent];
  }
  return JSON.stringify([...least, light(getComputedStyle(document.body).backgroundColor)]);
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with open_browser(PROGRAM, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def site_names() -> list[str]:
    parts = [
        f"{half}.{part}.{k}" for half in ("encoder", "decoder") for part in "ab" for k in "012"
    ]
    return [f"{part}.block.{k}.conv{n}" for part in parts for k in range(2) for n in (1, 2)]


def with_all_tables(report: Report) -> Report:
    """A report whose tables are as wide and as long as those of a model with many engines."""
    names = site_names()
    reason = "runs as Half correlation (sm75 has no INT8 convolution kernel)"
    proof = EngineProof(
        macs=10**9,
        shares={"INT8": 0.795, "INT4 weights": 0.105, "FP16": 0.1},
        weight_sites_planned=7,
        weight_sites_proved=7,
        constant_bytes={"FP16": 217_800, "FP32": 12, "INT8": 1_180_000},
        attentions=6,
        kernels=137,
        conversions=43,
    )
    engines = tuple(
        EngineRow(
            backend="tensorrt_rtx 1.7.1.116",
            target="sm75 sm86 sm89 sm120",
            precision="INT8+W8 + FP16",
            graph=graph,
            bytes=8_650_000,
            build_seconds=12.3,
            int8_sites_planned=24,
            int8_sites_proved=0,
            exceptions=tuple(SiteException(site=name, reason=reason) for name in names),
            proof=proof,
            status="built, not executed",
        )
        for graph in ("step", *(f"update.{k}" for k in range(7)))
    )
    sites = tuple(
        SiteRow(
            name=name,
            graph=name.split(".")[0],
            weight="INT8 per-channel",
            activation="INT8 per-tensor, shifted",
            weight_sqnr_db=38.5 + k % 5,
            activation_sqnr_db=None if k % 7 == 0 else 31.25 + k % 3,
            reason="its input stays in high precision: it feeds, or is fed by, the softmax",
        )
        for k, name in enumerate(names)
    )
    left = tuple(
        SiteRow(name=f"decoder.{k}.bmm_qk", graph="decoder", weight="-", activation="float")
        for k in range(9)
    )
    fp32 = Latency.of([123456.789 + k for k in range(10)])
    engine = Latency.of([98765.432 - 20000 * (k % 2) for k in range(10)])
    row = msgspec.structs.replace(
        report.latency["total"], fp32=fp32, engine=engine, speed=ratio(fp32, engine)
    )
    qdq = report.accuracy["qdq"]
    outputs: dict[str, float | None] = {name: 45.0 - k % 20 for k, name in enumerate(names)}
    return msgspec.structs.replace(
        report,
        model="cosmos-tokenizer-" + "di16x16" * 8,
        accuracy={
            **report.accuracy,
            "qdq": msgspec.structs.replace(qdq, sites=outputs),
            "twin": qdq,
        },
        data=msgspec.structs.replace(
            report.data, validation=tuple(f"{LONG}{k}.png" for k in range(3))
        ),
        latency={"total": row, "encoder": row, "decoder": row},
        engines=engines,
        sites=(*sites, *left),
        **timing_and_opinions(),
    )


def timing_and_opinions() -> dict[str, Any]:
    """A report of a GPU, on a busy machine, with other ways of running."""
    gpu = GpuState(
        memory_bytes=10**10, megahertz=1980.0, memory_megahertz=2619.0, busy_percent=97.0
    )
    load = MachineLoad(
        processors=128,
        others_before=0.0,
        others_during=113.25,
        others_after=1.5,
        load_before=97.25,
        load_after=101.5,
        megahertz_before=2596.0,
        megahertz_after=3141.5,
        governor="performance",
        gpu_before=gpu,
        gpu_after=gpu,
    )
    start = Starts(
        load_ms=(123456.78, 113456.78, 133456.78),
        first_ms=(98765.43, 98765.44, 98765.45),
        memory_bytes=75_500_000_000,
        device_bytes=12_500_000_000,
    )
    opinions = [
        SecondOpinion(
            candidate=candidate,
            graph=graph,
            outputs=2,
            max_error=None if by == "torch" else 1.25e-6,
            agrees=by == "polygraphy",
            by=by,
            samples=4,
            relative_error=1.25e-5,
            equal=0.99875,
            limit="0.0005 of the RMS, 99.5 % of integers equal",
        )
        for by in ("polygraphy", "torch")
        for candidate, graph in (("fp32", "encoder"), ("qdq", "decoder"))
    ]
    figure = FigureOpinion(
        graph="encoder", output="latent", by="torch", ours_db=34.5, theirs_db=None, samples=4
    )
    return {
        "machine": load,
        "starts": {"fp32": start, "engine": start},
        "second_opinions": tuple(opinions),
        "figure_opinions": (figure,),
        "opinions_not_run": ("TensorRT by Polygraphy's TrtRunner: not executed here",),
    }


def as_generator(report: Report) -> Report:
    names = tuple(f"seed 1000, picture {k}, class {k}" for k in range(3))
    pictures = GeneratedImageAccuracy(
        token_agreement=0.5,
        first_difference=(3, None, 255),
        length=256,
        latent_sqnr_db=None,
        psnr_vs_fp32=Summary.of([30.0, 40.0, 35.0]),
        ssim_vs_fp32=Summary.of([0.9, 0.8, 0.7]),
    )
    made = GeneratorAccuracy(pictures=pictures)
    qdq = msgspec.structs.replace(made, sites=report.accuracy["qdq"].sites)
    row = msgspec.structs.replace(report.latency["total"], tokens=768)
    return msgspec.structs.replace(
        report,
        accuracy={},
        generation={"qdq": qdq, "engine": made},
        latency={"total": row, "tokens": row, "decoder": row},
        data=Data(validation=names, calibration=("x",), pictures=names, sampling={"cfg": 1.5}),
    )


@pytest.fixture(params=KINDS)
def page(request: pytest.FixtureRequest, make_report: MakeReport, tmp_path: Path) -> Path:
    made = make_report(gates=("psnr>=1", "engine.psnr_vs_fp32_min>=99"))
    report = with_all_tables(made.report)
    path = tmp_path / "report.html"
    if request.param == "comparison":
        quick = msgspec.structs.replace(report, versions={})
        labels = ("baseline/of_the_main_branch", "this/branch", LONG)
        path.write_text(comparison_html(compare([(label, quick) for label in labels])))
    elif request.param == "generator":
        path.write_text(to_html(report_page(as_generator(report), [])))
    elif request.param == "index":
        path.write_text(to_html(index_page(wide_index(report, tmp_path))))
    else:
        write_report(tmp_path, report, made.pictures)
    return path


def wide_index(report: Report, folder: Path) -> ReportIndex:
    """An index of reports in deep folders, one of them damaged, and of bundles."""
    for name in (f"{LONG}/validate/int8", "short"):
        (folder / name).mkdir(parents=True)
        (folder / name / "report.json").write_bytes(encode_report(report))
    (folder / LONG / "validate/int8/report.html").touch()
    (folder / "damaged").mkdir()
    (folder / "damaged" / "report.json").write_text("{")
    bundle = IndexedBundle(
        file=f"{LONG}/bundle.tar",
        model=report.model,
        quantization="w8a8",
        bytes=75_500_000,
        digest=f"sha256:{'5f' * 32}",
        signatures=("ab" * 32, ""),
        groups=("cpu", "kit", "reference", "rtx-sm120-sm121", "rtx-sm75", "rtx-sm86-sm89"),
    )
    unsigned = msgspec.structs.replace(bundle, signatures=())
    found = make_index([folder], folder)
    return msgspec.structs.replace(found, bundles=(bundle, unsigned))


def assert_whole(browser: Browser, page: Path) -> None:
    overflow, cut = json.loads(browser.evaluate(CUT))
    assert (overflow, cut) == (0, [])
    assert json.loads(browser.evaluate(HIDDEN)) == []
    assert browser.requests() == [page.resolve().as_uri()]
    assert browser.messages() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_screen_shows_all_of_a_page(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.show(page, width=width, dark=dark)
    browser.evaluate(OPEN_ALL)
    assert_whole(browser, page)
    browser.screenshot(page.with_name(f"{width}{'-dark' * dark}.png"))
    contrast, text, ground = json.loads(browser.evaluate(CONTRAST))
    assert contrast >= 4.5, text
    assert ground < 0.1 if dark else ground > 0.8


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, PAPER, DESKTOP])
def test_paper_shows_all_of_a_page_folded_tables_too(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.show(page, width=width, dark=dark, printed=True)
    assert_whole(browser, page)
    contrast, text, _ = json.loads(browser.evaluate(CONTRAST))
    assert contrast >= 4.5, text


def wide_table(path: Path) -> Path:
    header = tuple(f"{'column' * 3}{k}" for k in range(9))
    table = Table(title="Wide", header=header, rows=(("123456.78 ms",) * 9,))
    path.write_text(
        to_html(Page(title="T", subtitle="", verdict=_plain(), tables=(table,))), encoding="utf-8"
    )
    return path


def _plain() -> Any:
    from arvg_trt.validate.report.page import Badge

    return Badge("none", "plain")


def test_a_table_that_cannot_be_narrower_scrolls_in_its_box_and_shows_it(
    browser: Browser, tmp_path: Path
) -> None:
    """Shadows at the box's edges lie still; what hides them at the table's ends scrolls with it."""
    browser.show(wide_table(tmp_path / "page.html"), width=800)
    found = browser.evaluate(
        "(() => { const box = document.querySelector('.scroll'), style = getComputedStyle(box);"
        "const page = document.documentElement; return JSON.stringify([box.scrollWidth >"
        "box.clientWidth, style.overflowX, style.backgroundAttachment, page.scrollWidth]) })()"
    )
    scrolls, overflow, attachment, width = json.loads(found)
    assert scrolls and overflow == "auto" and width == 800
    assert attachment == "local, local, scroll, scroll, scroll"
    browser.screenshot(tmp_path / "wide.png")
