from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arvg_trt.errors import CalibrationError
from arvg_trt.samples.crops import noise_images, random_crops
from arvg_trt.samples.images import (
    SKIMAGE_COLOUR,
    SKIMAGE_FILES,
    open_source,
)

RNG = np.random.default_rng(0)


def picture(height: int = 20, width: int = 30) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder: Path, *names: str) -> None:
    for name in names:
        Image.fromarray(picture()).save(folder / name)


def test_folder_is_read_in_order_of_names_and_other_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, "b.png", "a.JPG", "c.webp", "d.jpeg")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder.png").mkdir()
    source = open_source(str(tmp_path))
    assert source.names == ("a.JPG", "b.png", "c.webp", "d.jpeg")
    assert source.skipped == ()
    assert np.array_equal(source.load(1), np.asarray(Image.open(tmp_path / "b.png")))


def test_unreadable_files_are_skipped_and_listed(tmp_path: Path) -> None:
    write(tmp_path, "b.png")
    (tmp_path / "a.png").write_bytes(b"nothing")
    data = (tmp_path / "b.png").read_bytes()
    (tmp_path / "c.png").write_bytes(data[: len(data) // 2])
    np.save(tmp_path / "d.npy", np.zeros((4, 4)))
    np.save(tmp_path / "e.npy", np.zeros((0, 4, 3), np.uint8))
    np.save(tmp_path / "f.npy", np.array([{}], object), allow_pickle=True)
    np.savez(tmp_path / "g.npz", x=picture())
    (tmp_path / "g.npz").rename(tmp_path / "g.npy")
    np.save(tmp_path / "h.npy", np.zeros((4, 4, 3), np.int64))
    (tmp_path / "i.npy").write_bytes(b"")
    source = open_source(str(tmp_path))
    assert source.names == ("b.png",)
    reasons = dict(text.split(": ", 1) for text in source.skipped)
    assert list(reasons) == [f"{n}.{'png' if n in 'ac' else 'npy'}" for n in "acdefghi"]
    assert reasons["a.png"] == "no picture"
    assert reasons["c.png"].startswith("cut off or damaged")
    assert reasons["d.npy"] == "no array of pixels: its shape is [4, 4]"


def test_folder_with_only_unreadable_files_is_an_error_with_their_count(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match="2 files, none readable"):
        open_source(str(tmp_path))


def test_empty_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no image files") as caught:
        open_source(str(tmp_path))
    assert caught.value.where == str(tmp_path)


def test_absent_folder_and_file_for_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such folder"):
        open_source(str(tmp_path / "none"))
    write(tmp_path, "a.png")
    with pytest.raises(CalibrationError, match="is a file"):
        open_source(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([np.nan, 0.5, np.nan], "2 values are NaN or infinite"),
        ([-np.inf, 0.5, 0], "1 values are NaN or infinite"),
        ([0, 128, 255], "values from 0 to 255.*x / 127.5 - 1"),
        ([-1.01, 0, 1], "values from -1.01 to 1"),
        ([0, 0.3, 0.9], r"looks like 0\.\.1.*2 \* x - 1"),
        ([0.2, 0.3, 1], r"looks like 0\.\.1"),
        ([0.25, 0.25, 0.25], r"looks like 0\.\.1"),
        ([-0.25, -0.25, -0.25], "constant image"),
        ([0, 0, 0], "constant image"),
    ],
)
def test_float_array_that_must_not_be_used_is_an_error_that_names_it(
    tmp_path: Path, values: list[float], message: str
) -> None:
    write(tmp_path, "a.png")
    array = np.full((5, 4, 3), values[0], np.float32)
    array.flat[1:] = values[1]
    array.flat[-1] = values[2]
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(CalibrationError, match=message) as caught:
        open_source(str(tmp_path))
    assert caught.value.where == str(tmp_path / "bad.npy")


def test_constant_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "flat.png")
    with pytest.raises(CalibrationError, match=r"flat\.png: constant image .* is 9"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_become_the_pixels_they_stand_for(
    tmp_path: Path, channels_first: bool, dtype: type
) -> None:
    image = picture()
    array = (image / 127.5 - 1).astype(dtype)
    np.save(tmp_path / "x.npy", array.transpose(2, 0, 1) if channels_first else array)
    assert np.array_equal(open_source(str(tmp_path)).load(0), image)


def test_uint8_array_is_the_image(tmp_path: Path) -> None:
    image = picture()
    np.save(tmp_path / "x.npy", image)
    assert np.array_equal(open_source(str(tmp_path)).load(0), image)


def test_photographs_of_skimage_are_named_and_listed() -> None:
    assert open_source("skimage:coffee,camera").names == ("coffee.png", "camera.png")
    assert open_source("skimage").names == tuple(SKIMAGE_FILES[n] for n in SKIMAGE_COLOUR)
    assert open_source("skimage:camera").load(0).shape == (512, 512, 3)


def test_unknown_photograph_is_an_error_with_the_choices() -> None:
    with pytest.raises(CalibrationError, match=r"no photograph named moon.*astronaut"):
        open_source("skimage:coffee,moon")


def test_crops_are_deterministic_and_larger_counts_extend_smaller_ones(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    source = open_source(str(tmp_path))
    few, many, other = (
        list(random_crops(source, count, 8, seed)) for count, seed in ((3, 5), (7, 5), (7, 6))
    )
    assert len(few) == 3 and len(many) == 7
    assert all(np.array_equal(a, b) for a, b in zip(few, many, strict=False))
    assert any(not np.array_equal(a, b) for a, b in zip(many, other, strict=True))
    assert any(not np.array_equal(many[k], many[k + 2]) for k in range(5))


def test_crop_is_a_window_of_each_image_in_turn(tmp_path: Path) -> None:
    write(tmp_path, "a.png", "b.png")
    source = open_source(str(tmp_path))
    for k, crop in enumerate(random_crops(source, 6, 8, 0)):
        windows = np.lib.stride_tricks.sliding_window_view(source.load(k % 2), (8, 8, 3))
        assert crop.shape == (8, 8, 3)
        assert (windows[:, :, 0] == crop).all(axis=(2, 3, 4)).any()


def test_small_image_is_enlarged_to_the_crop(tmp_path: Path) -> None:
    Image.fromarray(picture(5, 9)).save(tmp_path / "small.png")
    assert [c.shape for c in random_crops(open_source(str(tmp_path)), 2, 16, 0)] == [
        (16, 16, 3)
    ] * 2


def test_noise_is_deterministic_and_extends() -> None:
    few, many = (list(noise_images(count, 4, 1)) for count in (2, 4))
    assert all(np.array_equal(a, b) for a, b in zip(few, many, strict=False))
    assert not np.array_equal(many[2], many[3])


def test_class_folders_are_walked_in_turns_and_files_named_with_their_class(
    tmp_path: Path,
) -> None:
    for folder in ("cat", "dog", "empty", ".cache"):
        (tmp_path / folder).mkdir()
    write(tmp_path, "cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", ".cache/1.png")
    (tmp_path / "dog" / "again").symlink_to(tmp_path)  # a loop
    source = open_source(str(tmp_path))
    assert source.names == ("cat/1.png", "dog/1.png", "cat/2.png", "cat/3.png")
    assert open_source(str(tmp_path), most=2).names == ("cat/1.png", "dog/1.png")


def test_files_without_a_suffix_are_read_or_named(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "photo", "PNG")
    (tmp_path / "LICENSE").write_text("words")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    source = open_source(str(tmp_path))
    assert source.names == ("photo",)
    assert [text.split(":")[0] for text in source.skipped] == ["LICENSE", "gone.png"]


def test_unreadable_files_are_counted_by_their_kind_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("words")
    (tmp_path / "b.png").write_text("words")
    Image.new("1", (12_000, 8_000)).save(tmp_path / "c.png")
    Image.fromarray(picture(1, 6000)).save(tmp_path / "d.png")
    (tmp_path / "e.png").touch()
    with pytest.raises(CalibrationError) as caught:
        open_source(str(tmp_path), size=256)
    assert caught.value.what == (
        "5 files, none readable: 2 no picture (a.png); 1 too large (c.png: too large: it has 96 "
        "million pixels, and at most 89 million are read); 1 too thin (d.png: too thin: 6000x1 "
        "pixels, whose short side is to be enlarged to 256); 1 empty (e.png)"
    )


def test_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.heic", "b.HEIC", "c.zip"):
        (tmp_path / name).write_text("x")
    with pytest.raises(CalibrationError, match=r"no image files \(it holds 2 \.heic, 1 \.zip\)"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("spec", ["", " "])
def test_empty_name_is_not_the_folder_that_the_command_runs_in(spec: str) -> None:
    with pytest.raises(CalibrationError, match="no folder named"):
        open_source(spec)


def test_array_that_claims_more_than_its_file_has_takes_no_memory(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(CalibrationError, match=r"1 no array that is read \(x\.npy"):
        open_source(str(tmp_path))
