"""The graphs of tokenizers with one map of codes in ONNX Runtime against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from arvg_trt.errors import BundleError, ExportError
from arvg_trt.families.gsq.parity import compute_gsq_references
from arvg_trt.families.shared.vq_parity import check_vq_parity, compute_vq_references
from arvg_trt.runtime.images import to_model
from arvg_trt.runtime.sessions.open import fast_session, reference_session
from arvg_trt.runtime.tokenizer import ImageTokenizer

from ..gsq.models import EXPORTED
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


@dataclass(frozen=True)
class Codec:
    """A tiny tokenizer and its export; a position has `groups` codes, on an axis if several.

    `varied` codes at least are in two images; `absent` are operators that its graphs have not.
    """

    model: Any
    folder: Path
    config: Any
    references: Callable[..., Any]
    varied: int
    absent: frozenset[str]
    groups: tuple[int, ...] = ()


@pytest.fixture(params=["rar", "gsq"])
def codec(request: pytest.FixtureRequest) -> Codec:
    """RAR's MaskGIT-VQ, and a GSQ of two groups."""
    tiny = request.getfixturevalue(f"tiny_{request.param}")
    if request.param == "rar":
        # Padding is part of the convolutions: nothing is computed from the size of a map.
        absent = frozenset({"Pad", "Ceil", "Loop", "If"})
        return Codec(tiny.tokenizer, tiny.folder, TOKENIZER, compute_vq_references, 8, absent)
    absent = frozenset({"Pad", "Loop", "If", "ScatterElements", "ConstantOfShape"})
    groups = (EXPORTED.groups,)
    return Codec(tiny.model, tiny.folder, EXPORTED, compute_gsq_references, 16, absent, groups)


@pytest.mark.parametrize("session", [reference_session, fast_session])
@pytest.mark.parametrize(
    ("codec", "shape"),
    [
        *((name, shape) for name in ("rar", "gsq") for shape in ((1, 8, 8), (3, 12, 20))),
        ("rar", (1, 4, 4)),
        ("gsq", (1, 4, 8)),
    ],
    indirect=["codec"],
)
def test_graphs_compute_what_pytorch_computes_at_any_size(
    codec: Codec, session, shape: tuple[int, int, int]
) -> None:
    model, image, stride = codec.model, random_images(*shape), codec.config.stride
    latent = model.encode(torch.from_numpy(image))
    codes = model.codes(latent)
    assert codes.shape == (shape[0], shape[1] // stride, shape[2] // stride, *codec.groups)
    found = session(codec.folder / "encoder.onnx").run({"image": image})
    assert list(found) == ["indices", "latent"] and found["indices"].dtype == np.int32
    close(found["latent"], latent)
    assert np.array_equal(found["indices"], codes.numpy())
    back = session(codec.folder / "decoder.onnx").run({"indices": found["indices"]})["image"]
    close(back, model.decode(codes))


def test_codes_vary(codec: Codec) -> None:
    """Guards the test above: an encoder that always finds one code would pass it."""
    image = torch.from_numpy(random_images(2, 16, 16))
    assert len(codec.model.codes(codec.model.encode(image)).unique()) > codec.varied


@pytest.mark.parametrize(
    ("codec", "size"),
    [
        *(("rar", size) for size in ((7, 8), (8, 9), (3, 2))),
        *(("gsq", size) for size in ((8, 9), (6, 8), (3, 2))),
    ],
    indirect=["codec"],
)
def test_sizes_that_are_no_multiple_of_the_stride_are_refused(
    codec: Codec, size: tuple[int, int]
) -> None:
    opened = fast_session(codec.folder / "encoder.onnx")
    with pytest.raises(BundleError, match=rf"refused image \[1, 3, {size[0]}, {size[1]}\]"):
        opened.run({"image": random_images(1, *size)})


@pytest.mark.parametrize("code", [CODES, 1000])
def test_a_code_beyond_the_codebook_is_refused(tiny_rar: TinyRar, code: int) -> None:
    with pytest.raises(BundleError, match="refused indices"):
        fast_session(tiny_rar.folder / "decoder.onnx").run(
            {"indices": np.full((1, 2, 2), code, np.int32)}
        )


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_graph_is_valid_and_names_what_it_takes(codec: Codec, graph: str) -> None:
    path, stride = codec.folder / f"{graph}.onnx", codec.config.stride
    image = {"image": ["batch", 3, f"{stride}*h", f"{stride}*w"]}
    indices = {"indices": ["batch", "h", "w", *codec.groups]}
    latent = {"latent": ["batch", codec.config.latent_channels, "h", "w"]}
    wanted = image | indices | latent if graph == "encoder" else indices | image
    assert checked_shapes(path) == wanted
    found = operators(path)
    assert not set(found) & codec.absent
    shuffles = 2 if codec.groups and graph == "decoder" else 0
    assert found.count("DepthToSpace") == shuffles


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
    assert tokenizer.stride == STRIDE == 2 and tokenizer.discrete
    assert tokenizer.codebook_size == CODES
    image = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert tokenizer.round_trip(image).shape == (7, 5, 3)
    tokens, _ = tokenizer.encode(to_model(image[:6, :4]))
    assert tokens is not None and tokens.shape == (1, 3, 2)
    with pytest.raises(BundleError, match=f"outside 0..{CODES - 1}"):
        tokenizer.check_tokens(tokens + CODES)


@pytest.fixture
def references(codec: Codec) -> Any:
    side = 6 * codec.config.stride
    images = [random_images(1, side, side, seed) for seed in (1, 2)]
    return codec.references(codec.model, images)


def test_both_graphs_are_compared_and_agree(codec: Codec, references: Any) -> None:
    tokens, differences = check_vq_parity(codec.folder, references)
    compared = [(d.graph, d.tensor) for d in differences]
    assert compared == [("encoder", "latent"), ("decoder", "image")]
    assert all(0 <= d.mean <= d.max < 1e-4 for d in differences)
    assert (tokens.tokens, tokens.differ) == (2 * 36 * int(np.prod(codec.groups)), 0)


LATENT = r"encoder.onnx: latent of ONNX Runtime differs"
IMAGE = r"decoder.onnx: image of ONNX Runtime differs"


@pytest.mark.parametrize(
    ("codec", "graph", "initializer", "words"),
    [
        ("rar", "encoder", "encoder.conv_out.bias", LATENT),
        ("rar", "decoder", "decoder.conv_out.bias", IMAGE),
        ("rar", "encoder", "nearest.bias", r"encoder.onnx: \d+ of 72 tokens differ"),
        ("gsq", "encoder", "encoder.fianl_layers.2.bias", LATENT),
        ("gsq", "decoder", "decoder.final_layers.2.bias", IMAGE),
        ("gsq", "decoder", "decoder.blocks.1.beta.bias", IMAGE),
        ("gsq", "encoder", "nearest.parts.0.bias", r"encoder.onnx: \d+ of 144 tokens differ"),
    ],
    indirect=["codec"],
)
def test_a_graph_that_computes_something_else_is_refused(
    codec: Codec, references: Any, tmp_path: Path, graph: str, initializer: str, words: str
) -> None:
    folder = copied(codec.folder, tmp_path / "export")
    change(folder / f"{graph}.onnx", initializer, with_noise)
    with pytest.raises(ExportError, match=words):
        check_vq_parity(folder, references)
