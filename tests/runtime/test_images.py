from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from arvg_trt.errors import GenerationError
from arvg_trt.runtime.images import (
    UnreadableImage,
    center_crop,
    crop_back,
    enlarge_to,
    from_model,
    image_grid,
    load_image,
    pad_to_multiple,
    png_bytes,
    save_image,
    to_model,
)

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)

# What turns the stored pixels upright, per EXIF orientation (Exif 2.3, tag 0x0112).
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "x.png"), UPRIGHT[orientation](RGB))


def test_grey_is_repeated(tmp_path: Path) -> None:
    Image.fromarray(RGB[:, :, 0]).save(tmp_path / "x.png")
    assert np.array_equal(load_image(tmp_path / "x.png"), np.stack([RGB[:, :, 0]] * 3, axis=2))


def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 65536, (5, 4)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    found = load_image(tmp_path / "x.png")
    assert np.array_equal(found, np.stack([grey >> 8] * 3, axis=2))


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 128, 64, 1, 254]] * 4, np.uint8)
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "x.png")
    share = alpha[:, :, None] / 255
    wanted = RGB * share + 255 * (1 - share)
    assert np.abs(load_image(tmp_path / "x.png") - wanted).max() <= 1
    assert (load_image(tmp_path / "x.png")[:, 0] == 255).all()
    assert np.array_equal(load_image(tmp_path / "x.png")[:, 1], RGB[:, 1])


def test_palette_with_transparency_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 1, 2, 3])
    image.putdata([0, 1])
    image.save(tmp_path / "x.png", transparency=1)
    assert load_image(tmp_path / "x.png").tolist() == [[[200, 10, 20], [255, 255, 255]]]


def test_lossless_webp_is_read_exactly(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.webp", lossless=True)
    assert np.array_equal(load_image(tmp_path / "x.webp"), RGB)


def test_cmyk_jpeg_is_read_as_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    found = load_image(tmp_path / "x.jpg")
    assert found.shape == (8, 8, 3) and found[..., 0].min() > 200 and found[..., 1:].max() < 60


def encoded(form: str) -> bytes:
    stream = BytesIO()
    noise = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_file_is_unreadable_by_name(tmp_path: Path, form: str, share: float) -> None:
    data = encoded(form)
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UnreadableImage, match=r"^cut\."):
        load_image(path)


def test_text_named_as_an_image_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UnreadableImage, match=r"^x\.png"):
        load_image(tmp_path / "x.png")


def test_decompression_bomb_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB).save(tmp_path / "x.png")
    for limit in (20, 5):  # 24 pixels: a warning above the limit, an error above twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImage, match=r"x\.png: too large"):
            load_image(tmp_path / "x.png")


def test_saved_image_loads_back_the_same(tmp_path: Path) -> None:
    save_image(RGB, tmp_path / "x.png")
    assert np.array_equal(load_image(tmp_path / "x.png"), RGB)


def test_every_value_survives_the_range_of_the_model() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([ramp, ramp.T, 255 - ramp], axis=2)
    tensor = to_model(image)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    assert tensor.min() == -1 and tensor.max() == 1
    assert tensor[0, 1, 3, 5] == pytest.approx(image[3, 5, 1] / 127.5 - 1, abs=1e-7)
    assert np.array_equal(from_model(tensor), image)


def test_model_image_is_clamped_and_rounded_to_nearest() -> None:
    values = np.array([-7, -1, 1, 9, (100.4 / 127.5 - 1), (100.6 / 127.5 - 1)], np.float32)
    tensor = np.broadcast_to(values, (1, 3, 1, 6))
    assert from_model(tensor)[0, :, 0].tolist() == [0, 0, 255, 255, 100, 101]


images = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)), fill=st.just(7)
)


@given(images, st.sampled_from([1, 2, 8, 16]))
def test_padding_is_undone_by_cropping_back(image: np.ndarray, multiple: int) -> None:
    padded, offset = pad_to_multiple(image, multiple)
    assert np.array_equal(crop_back(padded, offset, image.shape[:2]), image)
    for before, after in zip(image.shape[:2], padded.shape[:2], strict=True):
        assert after % multiple == 0 and before <= after < before + multiple
    # Nothing but black was added, half of it before.
    assert int(padded.sum(dtype=np.int64)) == int(image.sum(dtype=np.int64))
    extra = [after - before for before, after in zip(image.shape, padded.shape, strict=True)]
    assert offset == (extra[0] // 2, extra[1] // 2)


@given(images, st.integers(1, 24))
def test_centre_crop_is_a_square_of_the_size_asked_for(image: np.ndarray, size: int) -> None:
    found = center_crop(image, size)
    assert found.shape == (size, size, 3)
    if min(image.shape[:2]) >= size:
        top, left = ((n - size) // 2 for n in image.shape[:2])
        assert np.array_equal(found, image[top : top + size, left : left + size])
    large = enlarge_to(image, size)
    assert min(large.shape[:2]) == max(size, min(image.shape[:2]))
    assert large.shape[0] / large.shape[1] == pytest.approx(
        image.shape[0] / image.shape[1], rel=1 / min(large.shape[:2])
    )


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (7, 3, 3)])
def test_grid_is_as_square_as_the_count_allows(count: int, rows: int, columns: int) -> None:
    images = np.random.default_rng(count).integers(0, 255, (count, 4, 5, 3), dtype=np.uint8)
    grid = image_grid(images, gap=1)
    assert grid.shape == (rows * 5 - 1, columns * 6 - 1, 3)
    cells = np.pad(grid, ((0, 1), (0, 1), (0, 0)), constant_values=255)
    cells = cells.reshape(rows, 5, columns, 6, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 5, 6, 3)
    assert np.array_equal(cells[:count, :4, :5], images)
    assert (cells[count:] == 255).all() and (cells[:, 4] == 255).all()


def test_png_bytes_are_the_picture() -> None:
    assert np.array_equal(np.asarray(Image.open(BytesIO(png_bytes(RGB)))), RGB)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_picture_that_is_not_finite_is_no_black_picture(odd: float) -> None:
    image = np.zeros((1, 3, 4, 4), np.float32)
    from_model(image)
    image[0, 1, 2, 3] = odd
    with pytest.raises(GenerationError, match="1 of 48 values of the image"):
        from_model(image)


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".tif", ".tiff", ".jfif", ""])
def test_other_forms_of_pictures_are_read_whatever_they_are_called(
    tmp_path: Path, suffix: str
) -> None:
    form = {".bmp": "BMP", ".gif": "GIF", ".jfif": "JPEG", "": "PNG"}.get(suffix, "TIFF")
    flat = np.zeros((4, 6, 3), np.uint8)
    flat[:, 3:] = 255
    Image.fromarray(flat).save(tmp_path / f"x{suffix}", form, quality=100)
    assert np.abs(load_image(tmp_path / f"x{suffix}").astype(int) - flat).max() <= 4


def test_picture_of_floats_is_refused_for_their_range_is_unknown(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableImage, match="pixels are floats"):
        load_image(tmp_path / "x.tif")


def test_too_large_picture_says_how_large_it_is(tmp_path: Path) -> None:
    Image.new("1", (12_000, 8_000)).save(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match="too large: it has 96 million pixels"):
        load_image(tmp_path / "x.png")


def test_thin_picture_is_not_enlarged_without_measure() -> None:
    thin = np.zeros((1, 6000, 3), np.uint8)
    with pytest.raises(UnreadableImage, match="too thin: 6000x1 pixels"):
        enlarge_to(thin, 256)
    assert enlarge_to(thin, 2).shape == (2, 12_000, 3)


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"^absent\.jpg: no such file or directory$"):
        load_image(tmp_path / "absent.jpg")
