"""The graphs of a tokenizer with one map of codes in ONNX Runtime against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from arvg_trt.errors import BundleError, ExportError
from arvg_trt.families.shared.vq_parity import VqReferences, check_vq_parity, compute_vq_references
from arvg_trt.runtime.images import to_model
from arvg_trt.runtime.sessions.onnxruntime import fast_session, reference_session
from arvg_trt.runtime.tokenizer import ImageTokenizer

from ..rar.models import TOKENIZER, TinyRar
from .formulas import close
from .graphs import (
    change,
    checked_shapes,
    copied,
    operators,
    random_images,
    sites_of,
    with_noise,
)

STRIDE, CODES = TOKENIZER.stride, TOKENIZER.vocab_size


@pytest.mark.parametrize("session", [reference_session, fast_session])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 20), (1, 4, 4)])
def test_graphs_compute_what_pytorch_computes_at_any_size(
    tiny_rar: TinyRar, session, shape: tuple[int, int, int]
) -> None:
    model, image = tiny_rar.tokenizer, random_images(*shape)
    latent = model.encode(torch.from_numpy(image))
    codes = model.codes(latent)
    found = session(tiny_rar.folder / "encoder.onnx").run({"image": image})
    assert list(found) == ["indices", "latent"] and found["indices"].dtype == np.int32
    close(found["latent"], latent)
    assert np.array_equal(found["indices"], codes.numpy())
    back = session(tiny_rar.folder / "decoder.onnx").run({"indices": found["indices"]})["image"]
    close(back, model.decode(codes))


def test_codes_vary(tiny_rar: TinyRar) -> None:
    """Guards the test above: an encoder that always finds one code would pass it."""
    image = torch.from_numpy(random_images(2, 16, 16))
    assert len(tiny_rar.tokenizer.codes(tiny_rar.tokenizer.encode(image)).unique()) > 8


@pytest.mark.parametrize("size", [(7, 8), (8, 9), (3, 2)])
def test_sizes_that_are_no_multiple_of_the_stride_are_refused(
    tiny_rar: TinyRar, size: tuple[int, int]
) -> None:
    assert STRIDE == 2
    opened = fast_session(tiny_rar.folder / "encoder.onnx")
    with pytest.raises(BundleError, match=rf"refused image \[1, 3, {size[0]}, {size[1]}\]"):
        opened.run({"image": random_images(1, *size)})


@pytest.mark.parametrize("code", [CODES, 1000])
def test_a_code_beyond_the_codebook_is_refused(tiny_rar: TinyRar, code: int) -> None:
    with pytest.raises(BundleError, match="refused indices"):
        fast_session(tiny_rar.folder / "decoder.onnx").run(
            {"indices": np.full((1, 2, 2), code, np.int32)}
        )


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_graph_is_valid_and_names_what_it_takes(tiny_rar: TinyRar, graph: str) -> None:
    path = tiny_rar.folder / f"{graph}.onnx"
    image = {"image": ["batch", 3, "2*h", "2*w"]}
    indices = {"indices": ["batch", "h", "w"]}
    latent = {"latent": ["batch", TOKENIZER.latent_channels, "h", "w"]}
    wanted = image | indices | latent if graph == "encoder" else indices | image
    assert checked_shapes(path) == wanted
    # Padding is part of the convolutions: nothing is computed from the size of a map.
    assert not set(operators(path)) & {"Pad", "Ceil", "Loop", "If"}


def test_the_sites_of_the_method_are_the_convolutions_between_the_ends(tiny_rar: TinyRar) -> None:
    modules = tiny_rar.tokenizer.named_modules()
    convolutions = {name for name, m in modules if isinstance(m, nn.Conv2d)}
    ends = {f"{half}.conv_{end}" for half in ("encoder", "decoder") for end in ("in", "out")}
    found = sites_of(tiny_rar.folder, ("encoder", "decoder"))
    assert {s.name for s in found if s.excluded is None} == convolutions - ends
    assert {s.name for s in found if s.excluded} == ends | {"nearest"}
    assert len({s.name for s in found}) == len(found)


def test_images_of_any_size_go_through_the_tokenizer(tiny_rar: TinyRar) -> None:
    tokenizer = ImageTokenizer.open(tiny_rar.folder)
    assert tokenizer.stride == STRIDE and tokenizer.discrete
    assert tokenizer.codebook_size == CODES
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert tokenizer.round_trip(image).shape == (7, 5, 3)
    tokens, _ = tokenizer.encode(to_model(image[:6, :4]))
    assert tokens is not None and tokens.shape == (1, 3, 2)
    with pytest.raises(BundleError, match=f"outside 0..{CODES - 1}"):
        tokenizer.check_tokens(tokens + CODES)


@pytest.fixture(scope="module")
def references(tiny_rar: TinyRar) -> VqReferences:
    images = [random_images(1, 12, 12, seed) for seed in (1, 2)]
    return compute_vq_references(tiny_rar.tokenizer, images)


def test_both_graphs_are_compared_and_agree(tiny_rar: TinyRar, references: VqReferences) -> None:
    tokens, differences = check_vq_parity(tiny_rar.folder, references)
    compared = [(d.graph, d.tensor) for d in differences]
    assert compared == [("encoder", "latent"), ("decoder", "image")]
    assert all(0 <= d.mean <= d.max < 1e-4 for d in differences)
    assert (tokens.tokens, tokens.differ) == (2 * 36, 0)


@pytest.mark.parametrize(
    ("graph", "initializer", "words"),
    [
        ("encoder", "encoder.conv_out.bias", r"encoder.onnx: latent of ONNX Runtime differs"),
        ("decoder", "decoder.conv_out.bias", r"decoder.onnx: image of ONNX Runtime differs"),
        ("encoder", "nearest.bias", r"encoder.onnx: \d+ of 72 tokens differ"),
    ],
)
def test_a_graph_that_computes_something_else_is_refused(
    tiny_rar: TinyRar,
    references: VqReferences,
    tmp_path: Path,
    graph: str,
    initializer: str,
    words: str,
) -> None:
    folder = copied(tiny_rar.folder, tmp_path / "export")
    change(folder / f"{graph}.onnx", initializer, with_noise)
    with pytest.raises(ExportError, match=words):
        check_vq_parity(folder, references)
