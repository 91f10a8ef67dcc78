"""Pictures in a report: the worst first, with their own figures, and no more than a file holds."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from arvg_trt.validate.measure.tokenizer_accuracy import ComparedImage
from arvg_trt.validate.metrics.image import psnr
from arvg_trt.validate.report.page import Badge, Page, to_html, to_markdown
from arvg_trt.validate.report.pictures.compared import CAPTION, image_rows, most_error
from arvg_trt.validate.report.pictures.rows import (
    MOST_BYTES,
    MOST_SIDE,
    Image,
    ImageRow,
    first_times,
    png,
)

GREY = np.full((24, 20, 3), 128, np.uint8)


def picture(name: str, by: int, original: np.ndarray | None = None) -> ComparedImage:
    return ComparedImage(name, original, GREY, {"qdq": GREY + 9, "engine": GREY + by})


def page(rows: tuple[ImageRow, ...]) -> Page:
    return Page(
        title="T",
        subtitle="",
        verdict=Badge("none", "plain"),
        image_rows=rows,
        image_rows_caption=CAPTION,
    )


def embedded(text: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [np.asarray(PilImage.open(io.BytesIO(base64.b64decode(each)))) for each in found]


def test_the_worst_is_first_and_one_without_error_last() -> None:
    """By the engine, not by the Q/DQ graph; a picture equal to FP32's has an infinite PSNR."""
    rows = image_rows([picture("equal", 0), picture("near", 1), picture("far", 30)])
    assert [row.title for row in rows] == ["far", "near", "equal"]
    expected = 20 * np.log10(255 / 30)
    assert rows[0].detail == f"PSNR to FP32 {expected:.2f} dB"
    assert rows[2].detail == "PSNR to FP32 \u221e, no pixel differs"
    assert not rows[2].images[-1].pixels.any()


def test_figures_of_the_original_are_those_of_both_sides() -> None:
    original = GREY + 2
    (row,) = image_rows([picture("a", 5, original)])
    own, fp32 = psnr(original, GREY + 5), psnr(original, GREY)
    assert row.detail.endswith(f"to the original {own:.2f} dB, FP32's {fp32:.2f} dB")
    assert [image.role for image in row.images] == [
        *("original", "reference", "quantized", "difference")
    ]


def test_a_picture_without_a_candidate_is_fp32s_alone() -> None:
    (row,) = image_rows([ComparedImage("a", None, GREY, {})])
    assert [image.role for image in row.images] == ["reference"] and row.detail == ""
    assert len(embedded(to_html(page((row,))))) == 1


def test_files_have_the_difference_multiplied_and_the_page_multiplies_its_own() -> None:
    (row,) = image_rows([picture("a", 3)])
    assert set(row.images[-1].pixels.ravel()) == {24} and row.images[-1].png() == png(GREY * 0 + 24)
    text = to_html(page((row,)))
    assert set(embedded(text)[-1].ravel()) == {3}
    for times in (1, 4, 8):
        assert f"filter: brightness({times})" in text


def test_a_large_picture_is_cut_to_where_its_error_is() -> None:
    large = np.zeros((MOST_SIDE + 300, MOST_SIDE + 200, 3), np.uint8)
    wrong = large.copy()
    wrong[700:760, 600:660] = 255
    window = most_error(wrong)
    assert [part.stop - part.start for part in window] == [MOST_SIDE, MOST_SIDE]
    assert wrong[window].sum() == wrong.sum()
    (row,) = image_rows([ComparedImage("a", large, large, {"engine": wrong})])
    assert row.detail.endswith("the part with the most error of 712 \u00d7 812 pixels")
    assert all(image.shown.shape == (MOST_SIDE, MOST_SIDE, 3) for image in row.images)
    assert np.array_equal(row.images[2].pixels, wrong)  # the file has all of it


@pytest.mark.parametrize("shape", [(1, 1, 3), (MOST_SIDE, 7, 3), (3, MOST_SIDE + 1, 3)])
def test_any_shape_has_a_window(shape: tuple[int, ...]) -> None:
    assert np.zeros(shape, np.uint8)[most_error(np.zeros(shape, np.uint8))].size > 0


def test_a_page_stays_below_its_limit_and_says_how_many_pictures_are_left_out() -> None:
    """Noise cannot be compressed: 8 pictures of 512 x 512 would take 25 MB."""
    random = np.random.default_rng(1)
    noise = [random.integers(0, 256, (512, 512, 3), dtype=np.uint8) for _ in range(3)]
    pictures = [
        ComparedImage(f"picture {k}", noise[0], noise[1], {"engine": noise[2]}) for k in range(8)
    ]
    rows = image_rows(pictures)
    text = to_html(page(rows))
    shown = text.count('class="sample ')
    assert 1 <= shown < 8 and len(text.encode()) <= MOST_BYTES
    assert f"{8 - shown} more lie in the folder samples" in text
    markdown = to_markdown(page(rows))
    assert all(f"### picture {k}" in markdown for k in range(8))


def test_all_differences_of_a_page_begin_with_the_factor_of_the_worst() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    pictures = [
        ComparedImage(f"picture {k}", grey, grey, {"engine": (grey + k).astype(np.uint8)})
        for k in (2, 90, 40)
    ]
    rows = image_rows(pictures)
    assert first_times(rows) == 1
    checked = re.findall(r'value="(\d)" checked', to_html(page(rows)))
    assert checked == ["1"] * 3
    assert first_times(rows[2:]) == 8


def test_no_picture_at_all_is_a_page_too(tmp_path: Path) -> None:
    assert image_rows([]) == ()
    empty = Page(title="T", subtitle="", verdict=Badge("none", "plain"))
    text = to_html(empty)
    assert "<script>" not in text and 'class="sample' not in text
    assert json.dumps(text)


@pytest.mark.parametrize(("error", "times"), [(0, 8), (20, 8), (40, 4), (90, 1), (255, 1)])
def test_a_page_begins_with_the_largest_factor_that_leaves_shades_apart(
    error: int, times: int
) -> None:
    """Images of other tokens, eight times their difference, would be white."""
    pixels = np.full((8, 8, 3), error, np.uint8)
    image = Image("Difference", "d.png", pixels, role="difference")
    assert image.first_times == times
    pixels[:, :1] = 0  # an eighth of the image is not what decides
    assert image.first_times == times
