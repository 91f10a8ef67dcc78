"""A tokenizer's engines for a GPU take images of one size, and other sizes are refused by name.

The graphs that they were built from stand in for the engines, which need a GPU: they would take
every size.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arvg_trt.errors import BundleError
from arvg_trt.runtime import folders
from arvg_trt.runtime.files import decode_pictures, encode_images, write_arrays
from arvg_trt.runtime.images import to_model
from arvg_trt.runtime.sessions.open import context_path
from arvg_trt.runtime.sessions.placement import ON_CPU
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.workspace.manifest import Manifest, write_manifest

from ..families.tiny import TinyExport

SIZE = 32
REFUSED = rf"has 40x24 pixels, and these engines take images of {SIZE}x{SIZE} alone"


def engines(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ImageTokenizer:
    folder.mkdir()
    for name in ("encoder", "decoder"):
        shutil.copyfile(source / f"{name}.onnx", context_path(folder / f"{name}.onnx"))
        for data in source.glob(f"{name}.onnx.data"):
            shutil.copyfile(data, folder / data.name)
        (folder / f"{name}.engine").write_bytes(b"")
    options = {"backend": "tensorrt_rtx", "name": "int8", "targets": ["sm89"], "image_size": SIZE}
    made = Manifest(stage="build", inputs={}, options=options, versions={})
    write_manifest(folder, made, {})
    monkeypatch.setattr(folders, "place_engine", lambda *_, **__: ON_CPU)
    return ImageTokenizer.open(folder, verify=False)


def picture(path: Path, width: int, height: int) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("fixture", ["tiny_di", "tiny_ci"])
def test_images_and_tokens_of_another_size_are_refused_before_an_engine_runs(
    fixture: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source: TinyExport = request.getfixturevalue(fixture)
    tokenizer = engines(source.folder, tmp_path / "rtx", monkeypatch)
    photo = picture(tmp_path / "photo.png", 40, 24)
    with pytest.raises(BundleError, match=REFUSED) as caught:
        encode_images(tokenizer, [photo])
    assert caught.value.where == str(photo)
    assert "--device cpu" in str(caught.value) and "--image-size" in str(caught.value)
    with pytest.raises(BundleError, match=REFUSED):
        tokenizer.encode(np.zeros((1, 3, 24, 40), np.float32))
    # Another device wrote these tokens, by graphs that take every size.
    tokens = tmp_path / "photo.npz"
    write_arrays(tokens, encode_images(ImageTokenizer.open(source.folder, verify=False), [photo]))
    with pytest.raises(BundleError, match=REFUSED) as caught:
        decode_pictures(tokenizer, tokens, tmp_path / "images")
    assert str(tokens) in str(caught.value.where)
    assert not (tmp_path / "images").exists()


def test_an_image_that_padding_brings_to_the_size_is_taken(
    tiny_di: TinyExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is not the engine's, and that of the padded one is."""
    tokenizer = engines(tiny_di.folder, tmp_path / "rtx", monkeypatch)
    photo = picture(tmp_path / "photo.png", 30, 25)
    tokens = tmp_path / "photo.npz"
    write_arrays(tokens, encode_images(tokenizer, [photo]))
    (path,) = decode_pictures(tokenizer, tokens, tmp_path / "images")
    with Image.open(path) as image:
        assert image.size == (30, 25)


def test_graphs_take_every_size(tiny_di: TinyExport) -> None:
    tokenizer = ImageTokenizer.open(tiny_di.folder, verify=False)
    assert tokenizer.engine_size is None
    assert tokenizer.encode(to_model(np.zeros((24, 40, 3), np.uint8)))[0].shape == (1, 3, 5)
