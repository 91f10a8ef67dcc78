"""A reader moves the handle, enlarges, multiplies and filters; and can do without all of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from arvg_trt.quantize.facts import SiteRow
from arvg_trt.validate.measure.tokenizer_accuracy import ComparedImage
from arvg_trt.validate.report.page import to_html
from arvg_trt.validate.report.pictures.compared import difference
from arvg_trt.validate.report.render import report_page

from ....browser import NOT_INSTALLED, Browser, find_browser, open_browser
from ...conftest import MakeReport

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason=NOT_INSTALLED)

PHONE, DESKTOP = 390, 1280
SIDE = 48
DARK, LIGHT = 60, 80  # FP32's grey and the quantized one's: 20 apart
RED = (200, 30, 40)
SITES = 9


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with open_browser(PROGRAM, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


def pictures() -> list[ComparedImage]:
    """A picture of two greys with a red middle, and one that is equal to FP32's."""
    fp32 = np.full((SIDE, SIDE, 3), DARK, np.uint8)
    quantized = np.full((SIDE, SIDE, 3), LIGHT, np.uint8)
    quantized[:, : SIDE // 4] = DARK + 50  # times 8 this is beyond white
    middle = slice(SIDE // 2 - 2, SIDE // 2 + 2)
    fp32[middle, middle] = quantized[middle, middle] = RED
    return [
        ComparedImage("equal.png", fp32, fp32, {"engine": fp32}),
        ComparedImage("far.png", fp32, fp32, {"engine": quantized}),
    ]


@pytest.fixture
def page(make_report: MakeReport, tmp_path: Path) -> Path:
    rows = tuple(
        SiteRow(
            name=f"{graph}.block.{k}",
            graph=graph,
            weight="INT8" if k % 3 else "INT4",
            activation="INT8",
            weight_sqnr_db=40.0 + k,
        )
        for graph in ("encoder", "decoder")
        for k in range(SITES)
    )
    left = tuple(
        SiteRow(name=f"decoder.left.{k}", graph="decoder", weight="FP32", activation="float")
        for k in range(11)
    )
    report = msgspec.structs.replace(make_report().report, sites=(*rows, *left))
    path = tmp_path / "report.html"
    path.write_text(to_html(report_page(report, pictures())), encoding="utf-8")
    return path


def seen(browser: Browser, selector: str) -> NDArray[np.uint8]:
    """The pixels of an element as the screen has them."""
    png = browser.pixels(*browser.box(selector))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def at(image: NDArray[np.uint8], x: float, y: float) -> list[int]:
    found: list[int] = image[int(y * image.shape[0]), int(x * image.shape[1])].tolist()
    return found


def quiet(browser: Browser, page: Path) -> None:
    assert browser.messages() == [] and browser.requests() == [page.resolve().as_uri()]
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.evaluate(wide) == 0


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_handle_shows_more_of_one_image_and_less_of_the_other(
    browser: Browser, page: Path, width: int
) -> None:
    browser.show(page, width=width)
    before = seen(browser, ".reference .stage")
    assert at(before, 0.45, 0.1) == [DARK] * 3 and at(before, 0.65, 0.1) == [LIGHT] * 3
    x, y, wide, high = browser.box(".handle")
    browser.drag(x + wide / 2, y + high / 2, x + wide * 0.8, y + high / 2)
    value = float(browser.evaluate("document.querySelector('.handle').value"))
    assert 75 < value < 90
    after = seen(browser, ".reference .stage")
    assert at(after, 0.65, 0.1) == [DARK] * 3 and at(after, 0.95, 0.1) == [LIGHT] * 3
    browser.click("label[for='zoom-0-4']")
    x, y, wide, high = browser.box(".handle")
    near = x + 12.8 + (wide - 25.6) * value / 100
    browser.drag(near, y + high / 3, x + wide / 2, y + high / 3)  # enlarged: near the handle
    assert 45 < float(browser.evaluate("document.querySelector('.handle').value")) < 55
    others = browser.evaluate("[...document.querySelectorAll('.handle')].pop().value")
    assert others == "50"  # each picture has its own
    quiet(browser, page)


def test_the_keyboard_moves_the_handle(browser: Browser, page: Path) -> None:
    browser.show(page, width=DESKTOP)
    browser.evaluate("document.querySelector('.handle').focus()")
    for _ in range(8):
        browser.press("ArrowRight", 39)
    assert float(browser.evaluate("document.querySelector('.handle').value")) == 54
    cut = "document.querySelector('.sample').style.getPropertyValue('--cut')"
    assert browser.evaluate(cut) == "54%"


@pytest.mark.parametrize("dragged", ["original", "reference"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_all_images_are_enlarged_about_the_same_point_and_move_together(
    browser: Browser, page: Path, width: int, dragged: str
) -> None:
    browser.show(page, width=width)
    browser.evaluate("document.querySelector('.handle').value = 100")
    browser.evaluate("document.querySelector('.handle').dispatchEvent(new Event('input'))")
    assert at(seen(browser, ".reference .stage"), 0.5, 0.5) == list(RED)
    assert at(seen(browser, ".reference .stage"), 0.42, 0.5) == [DARK] * 3
    browser.click("label[for='zoom-0-8']")
    for name in (".reference .stage", ".original .stage"):
        large = seen(browser, name)
        # The middle is 4 of 48 pixels wide, and 32 of them at eight times the size.
        assert at(large, 0.5, 0.5) == at(large, 0.25, 0.5) == at(large, 0.75, 0.75) == list(RED)
        assert at(large, 0.1, 0.5) == [DARK] * 3
    # Away from the handle, which is at the right edge, a drag moves the images.
    x, y, wide, high = browser.box(f".{dragged} .stage")
    browser.drag(x + wide / 2, y + high / 2, x + wide * 0.95, y + high / 2)
    assert browser.evaluate("document.querySelector('.handle').value") == "100"
    for name in (".reference .stage", ".original .stage"):
        assert at(seen(browser, name), 0.5, 0.5) == [DARK] * 3
    browser.click("label[for='zoom-0-1']")
    assert at(seen(browser, ".original .stage"), 0.5, 0.5) == list(RED)
    quiet(browser, page)


@pytest.mark.parametrize("scripts", [True, False])
def test_the_difference_is_multiplied_exactly_on_the_screen(
    browser: Browser, page: Path, scripts: bool
) -> None:
    browser.show(page, width=DESKTOP, scripts=scripts)
    far = pictures()[1]
    for times in (8, 1, 4):
        browser.click(f"label[for='times-0-{times}']")
        wanted = difference(far.reference, far.candidates["engine"], times)
        found = seen(browser, ".difference .stage")
        for x, y in ((0.1, 0.5), (0.5, 0.5), (0.9, 0.2)):
            assert at(found, x, y) == at(wanted, x, y)
        assert at(wanted, 0.9, 0.2) == [20 * times] * 3
    quiet(browser, page)


STATE = """(() => {
  const table = [...document.querySelectorAll('table')].find(each => each.dataset.noun === 'sites');
  const rows = [...table.tBodies[0].rows].filter(row => row.getBoundingClientRect().height > 0);
  return JSON.stringify([rows.length, table.parentElement.previousElementSibling.textContent]);
})()"""
OPEN_ALL = "document.querySelectorAll('details').forEach(each => { each.open = true })"


def set_filter(browser: Browser, text: str = "", **columns: str) -> tuple[int, str]:
    """Set the filter of the sites, and return the rows that are left and what the page says."""
    asked = json.dumps([text, columns])
    browser.evaluate(
        f"""(() => {{
      const [text, columns] = {asked};
      const table = [...document.querySelectorAll('table')].find(e => e.dataset.noun === 'sites');
      const tools = table.parentElement.previousElementSibling;
      const set = (control, value) => {{
        control.value = value; control.dispatchEvent(new Event('input')) }};
      set(tools.querySelector('input'), text);
      for (const choice of tools.querySelectorAll('select'))
        set(choice, choice.ariaLabel in columns ? '=' + columns[choice.ariaLabel] : '');
    }})()"""
    )
    rows = browser.evaluate(STATE)
    tools = "e => e.dataset.noun === 'sites'"
    said = browser.evaluate(
        f"[...document.querySelectorAll('table')].find({tools})"
        ".parentElement.previousElementSibling.querySelector('output').textContent"
    )
    return int(json.loads(rows)[0]), str(said)


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_plan_is_filtered_by_text_and_format_with_counts(
    browser: Browser, page: Path, width: int
) -> None:
    browser.show(page, width=width)
    browser.evaluate(OPEN_ALL)
    every = 2 * SITES + 11
    assert set_filter(browser) == (2 * SITES + 1, f"{every} of {every} sites")
    assert set_filter(browser, Graph="encoder") == (SITES, f"{SITES} of {every} sites")
    assert set_filter(browser, Weight="INT4") == (6, f"6 of {every} sites")
    assert set_filter(browser, Weight="INT4", Graph="decoder") == (3, f"3 of {every} sites")
    assert set_filter(browser, "DECODER block.4") == (1, f"1 of {every} sites")
    # Eleven sites that are alike share a line, which names the first and the last.
    assert set_filter(browser, "left.5") == (1, f"11 of {every} sites")
    assert set_filter(browser, "nothing is called so") == (0, f"0 of {every} sites")
    _, said = json.loads(browser.evaluate(STATE))
    assert "Graph: all" in said and "encoder (9)" in said and "FP32 (11)" in said
    assert set_filter(browser)[0] == 2 * SITES + 1
    quiet(browser, page)


def apart(browser: Browser) -> bool:
    """Return whether no image of a pair lies over the other, and none is cut."""
    every = "[...document.querySelector('.paired').querySelectorAll('.frame')]"
    found = browser.evaluate(
        f"JSON.stringify({every}"
        ".map(e => [e.getBoundingClientRect(), getComputedStyle(e).clipPath])"
        ".map(([b, clip]) => [b.left, b.top, b.right, b.bottom, clip]))"
    )
    frames = json.loads(found)
    return len(frames) == 4 and all(
        a[4] == "none" and (a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1])
        for a, b in combinations(frames, 2)
    )


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_without_javascript_everything_is_there(browser: Browser, page: Path, width: int) -> None:
    browser.show(page, width=width, scripts=False)
    assert apart(browser)
    found = seen(browser, ".quantized .stage")
    assert at(found, 0.4, 0.1) == at(found, 0.9, 0.1) == [LIGHT] * 3
    assert at(seen(browser, ".difference .stage"), 0.9, 0.2) == [160] * 3
    assert browser.evaluate("document.querySelectorAll('.handle, .tools').length") == 0
    browser.evaluate(OPEN_ALL)
    rows = "[...document.querySelectorAll('tbody tr')]"
    assert browser.evaluate(f"{rows}.every(e => e.getBoundingClientRect().height > 0)") is True
    quiet(browser, page)


@pytest.mark.parametrize("scripts", [True, False])
def test_on_paper_both_images_are_whole(browser: Browser, page: Path, scripts: bool) -> None:
    browser.show(page, width=718, printed=True, scripts=scripts)
    assert apart(browser)
    tools = "[...document.querySelectorAll('.tools, .handle')].some(e => e.getClientRects().length)"
    assert browser.evaluate(tools) is False
    quiet(browser, page)


def test_no_other_program_runs_in_the_page(browser: Browser, page: Path) -> None:
    browser.show(page, width=DESKTOP)
    browser.evaluate(
        "(() => { const made = document.createElement('script');"
        "made.textContent = 'window.foreign = 1'; document.body.append(made) })()"
    )
    assert browser.evaluate("typeof window.foreign") == "undefined"
    assert any("Content Security Policy" in text for text in browser.messages())
