from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from arvg_trt.errors import BundleError
from arvg_trt.runtime.images import to_model
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.workspace import verify
from arvg_trt.workspace.files import sha256_file
from arvg_trt.workspace.manifest import Manifest, write_manifest

from ..families.tiny import TinyExport


@pytest.fixture(scope="module")
def discrete(tiny_di: TinyExport) -> ImageTokenizer:
    return ImageTokenizer.open(tiny_di.folder, verify=False)


@pytest.fixture(scope="module")
def continuous(tiny_ci: TinyExport) -> ImageTokenizer:
    return ImageTokenizer.open(tiny_ci.folder, verify=False)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_properties_of_the_graph_are_known(
    discrete: ImageTokenizer, continuous: ImageTokenizer
) -> None:
    assert discrete.stride == continuous.stride == 8
    assert discrete.discrete and discrete.codebook_size == 64000
    assert not continuous.discrete and continuous.codebook_size is None


def test_tokens_and_latents_are_those_of_pytorch(
    tiny_di: TinyExport, discrete: ImageTokenizer
) -> None:
    image = to_model(picture(24, 16))
    tokens, latent = discrete.encode(image)
    assert tokens is not None and tokens.dtype == np.int32 and tokens.shape == (1, 3, 2)
    wanted = tiny_di.model.encode(torch.from_numpy(image))
    np.testing.assert_allclose(latent, wanted.numpy(), atol=1e-4)
    assert tiny_di.model.quantizer is not None
    codes = tiny_di.model.quantizer.codes(torch.from_numpy(tokens))
    np.testing.assert_allclose(
        discrete.decode(tokens), tiny_di.model.decode(codes).numpy(), atol=1e-4
    )


@pytest.mark.parametrize("size", [(12, 16), (16, 12), (4, 8), (17, 17)])
@pytest.mark.parametrize("fixture", ["discrete", "continuous"])
def test_size_that_is_not_a_multiple_of_the_stride_is_refused(
    fixture: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    tokenizer: ImageTokenizer = request.getfixturevalue(fixture)
    with pytest.raises(BundleError, match=rf"refused image \[1, 3, {size[0]}, {size[1]}\]"):
        tokenizer.encode(to_model(picture(*size)))


def test_wrong_type_and_rank_are_refused(discrete: ImageTokenizer) -> None:
    with pytest.raises(BundleError, match="ONNX Runtime refused"):
        discrete.encode(np.zeros((1, 3, 8, 8)))
    with pytest.raises(BundleError, match="ONNX Runtime refused"):
        discrete.decode(np.zeros((1, 2), np.int32))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 31), (33, 7), (16, 24)])
@pytest.mark.parametrize("fixture", ["discrete", "continuous"])
def test_round_trip_of_any_size_keeps_the_shape(
    fixture: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    tokenizer: ImageTokenizer = request.getfixturevalue(fixture)
    back = tokenizer.round_trip(picture(*size))
    assert back.shape == (*size, 3) and back.dtype == np.uint8


def test_round_trip_is_padding_encoding_decoding_and_cropping(discrete: ImageTokenizer) -> None:
    image = picture(13, 20)
    padded = np.zeros((16, 24, 3), np.uint8)
    padded[1:14, 2:22] = image
    tokens, _ = discrete.encode((padded.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None])
    assert tokens is not None
    out = np.clip(discrete.decode(tokens)[0].transpose(1, 2, 0), -1, 1)
    wanted = np.floor((out + 1) * 127.5 + 0.5)[1:14, 2:22]
    assert np.abs(discrete.round_trip(image).astype(int) - wanted).max() <= 1


def test_tokens_of_the_codebook_are_taken(discrete: ImageTokenizer) -> None:
    tokens = np.array([[[0, 63999]]], np.int64)
    checked = discrete.check_tokens(tokens)
    assert checked.dtype == np.int32 and np.array_equal(checked, tokens)
    assert discrete.check_tokens(np.zeros((1, 0, 3), np.uint16)).shape == (1, 0, 3)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([[[64000]]]), "outside 0..63999"),
        (np.array([[[-1]]]), "outside 0..63999"),
        (np.array([[[2**40]]]), "outside 0..63999"),
        (np.zeros((2, 2), np.int32), r"shape \(2, 2\)"),
        (np.zeros((1, 2, 2), np.float32), "float32"),
        (np.zeros((1, 2, 2), bool), "bool"),
    ],
)
def test_tokens_outside_the_codebook_are_refused(
    discrete: ImageTokenizer, tokens: np.ndarray, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        discrete.check_tokens(tokens)


@pytest.mark.parametrize("absent", ["encoder", "decoder"])
def test_folder_without_a_graph_is_refused_by_its_name(
    tiny_di: TinyExport, tmp_path: Path, absent: str
) -> None:
    for name in {"encoder", "decoder"} - {absent}:
        (tmp_path / f"{name}.onnx").write_bytes((tiny_di.folder / f"{name}.onnx").read_bytes())
    with pytest.raises(BundleError, match=f"{absent}.onnx is missing"):
        ImageTokenizer.open(tmp_path)


def test_folder_is_verified_once_before_it_is_opened(
    tiny_di: TinyExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in tiny_di.folder.iterdir():
        shutil.copy(path, tmp_path)
    empty = Manifest(stage="export", inputs={}, options={}, versions={})
    outputs = write_manifest(tmp_path, empty, {}).outputs
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(verify, "sha256_file", counted)
    ImageTokenizer.open(tmp_path)
    assert sorted(hashed) == sorted(outputs)


def test_graph_of_another_tool_is_refused(tiny_di: TinyExport, tmp_path: Path) -> None:
    for name in ("encoder", "decoder"):
        model = onnx.load(tiny_di.folder / f"{name}.onnx")
        del model.metadata_props[:]
        onnx.save(model, tmp_path / f"{name}.onnx")
    with pytest.raises(BundleError, match="says no stride"):
        ImageTokenizer.open(tmp_path, verify=False)


def test_runtime_imports_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, arvg_trt.runtime.tokenizer, arvg_trt.samples.images, "
        "arvg_trt.runtime.trt_compat\n"
        "heavy = set('torch onnx onnx_ir onnxscript skimage tensorrt tensorrt_rtx'.split())\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
