"""The graphs of a GSQ tokenizer in ONNX Runtime against PyTorch, and their sites."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from arvg_trt.errors import BundleError
from arvg_trt.families.gsq import graphs as gsq_graphs
from arvg_trt.families.gsq import model as gsq
from arvg_trt.families.gsq.graphs import CodeSearch, GsqEncoderGraph
from arvg_trt.families.gsq.model import nearest_in_parts
from arvg_trt.families.gsq.parity import GsqReferences
from arvg_trt.runtime.tokenizer import ImageTokenizer

from ..shared.graphs import random_images, sites_of
from .models import EXPORTED, GROUPED, SINGLE, TinyGsq, random_gsq

STRIDE, CODES, GROUPS = EXPORTED.stride, EXPORTED.vocab_size, EXPORTED.groups


def test_of_one_group_indices_have_no_axis_of_groups() -> None:
    image = torch.from_numpy(random_images(2, 16, 24))
    for config, shape in ((SINGLE, (2, 4, 6)), (GROUPED, (2, 8, 12, 2))):
        model = random_gsq(config)
        indices, latent = GsqEncoderGraph(model)(image)
        assert indices.shape == shape and indices.dtype == torch.int32
        assert torch.equal(indices, model.codes(latent))


@pytest.mark.parametrize("part", [7, 16, 50, 64])
def test_a_search_in_parts_finds_the_nearest_code(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, table = (torch.randn(n, 3, generator=generator) for n in (60, 50))
    table[33] = table[4]  # the first of two equal ones is the code
    vectors[0] = table[33]
    wanted = nearest_in_parts(vectors, table)
    assert wanted[0] == 4
    monkeypatch.setattr(gsq_graphs, "PART", part)
    search = CodeSearch(table)
    assert len(search.parts) == -(-50 // part)
    assert torch.equal(search(vectors), wanted)


def test_no_search_holds_more_than_a_part() -> None:
    """All scores of 4,096 vectors and 262,144 codes would be 4 GiB."""
    search = CodeSearch(torch.zeros(1 << 18, 1))
    assert {part.out_features for part in search.parts} == {gsq.PART}
    assert gsq.PART <= 1 << 14


def test_a_single_position_is_refused(tiny_gsq: TinyGsq) -> None:
    """It has no variance: the decoder would make NaN."""
    tokenizer = ImageTokenizer.open(tiny_gsq.workspace)
    with pytest.raises(BundleError, match="has 1 of the 2 or more positions"):
        tokenizer.fit(np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(BundleError, match="has 1 of the 2 or more positions"):
        tokenizer.check_tokens(np.zeros((1, 1, 1, GROUPS), np.int32))
    assert tokenizer.fit(np.zeros((3, 5, 3), np.uint8))[0].shape == (4, 8, 3)
    two = tokenizer.check_tokens(np.zeros((1, 1, 2, GROUPS), np.int32))
    assert np.isfinite(tokenizer.decode(two)).all()


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.zeros((1, 2, 2), np.int32), r"shape \(1, 2, 2\) .*give integers \[N, h, w, 2\]"),
        (np.zeros((1, 2, 2, 3), np.int32), r"shape \(1, 2, 2, 3\)"),
        (np.zeros((1, 2, 2, 2), np.float32), "float32"),
        (np.full((1, 2, 2, 2), CODES), f"outside 0..{CODES - 1}"),
        (np.full((1, 2, 2, 2), -1), f"outside 0..{CODES - 1}"),
    ],
)
def test_tokens_that_are_not_this_tokenizers_are_refused(
    tiny_gsq: TinyGsq, tokens: np.ndarray, words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        ImageTokenizer.open(tiny_gsq.workspace).check_tokens(tokens)


def test_the_sites_of_the_method_are_the_convolutions_between_the_ends(tiny_gsq: TinyGsq) -> None:
    modules = dict(tiny_gsq.model.named_modules())
    convolutions = {name for name, m in modules.items() if isinstance(m, nn.Conv2d)}
    linears = {name for name, m in modules.items() if isinstance(m, nn.Linear)}
    ends = {"encoder.conv_in", "encoder.fianl_layers.2", "decoder.conv_in"}
    ends |= {"decoder.final_layers.2"}
    found = sites_of(tiny_gsq.folder, ("encoder", "decoder"))
    assert {s.name for s in found if s.excluded is None} == convolutions - ends
    assert {s.name for s in found if s.excluded} == ends | linears | {"nearest.parts.0"}
    assert len({s.name for s in found}) == len(found)
    roles = {s.name: s.role for s in found}
    assert roles.pop("nearest.parts.0") == "codes"
    assert {role for name, role in roles.items() if name in linears} == {"linear"}


def test_codes_are_compared_over_their_channels(tiny_gsq: TinyGsq) -> None:
    search = next(s for s in sites_of(tiny_gsq.folder, ("encoder", "decoder")) if s.role == "codes")
    assert search.channel_axis == 4  # of [N, h, w, G, d]


def on_a_circle(codes: int, angles: np.ndarray, length: float = 3.0) -> GsqReferences:
    """Latents [1, 2, 1, n] in the directions of `angles`, and as many codes around the circle."""
    around = 2 * np.pi * np.arange(codes) / codes
    table = np.stack([np.cos(around), np.sin(around)], axis=-1)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None, None, :, None]
    nearest = (vectors @ table.T).argmax(-1)[..., 0]
    raw = length * vectors
    picture = np.zeros((1, 3, 1, len(angles)), np.float32)
    arrays = (picture, raw[..., 0, :].transpose(0, 3, 1, 2), nearest, picture, raw, vectors, table)
    floats = [a if a.dtype.kind == "i" else a.astype(np.float32) for a in arrays]
    return GsqReferences(*floats)


def test_of_codes_closer_than_float32_either_may_be_found() -> None:
    """262,144 codes on a circle: each index is as good as its neighbour's."""
    made = on_a_circle(1 << 18, np.array([0.1, 1.0, 4.0]))
    for step, allowed in ((1, True), (-1, True), (3000, False)):
        found = ((made.indices + step) % (1 << 18)).astype(np.int32)
        assert (made.may_differ(found, 1e-6) == allowed).all()


@pytest.mark.parametrize(("beyond", "allowed"), [(1e-7, True), (1e-5, True), (1e-3, False)])
def test_a_vector_between_two_codes_may_have_either(beyond: float, allowed: bool) -> None:
    made = on_a_circle(8, np.array([np.pi / 8 - beyond, 0.1]))
    assert made.indices.ravel().tolist() == [0, 0]
    assert made.may_differ(np.array([[[1, 0]]], np.int32), 1e-5).tolist() == [[[allowed, False]]]


def test_a_short_vector_is_as_much_more_sensitive() -> None:
    """An error of the latent turns it by more."""
    angles = np.array([np.pi / 8 - 1e-4, 0.1])
    other = np.array([[[1, 0]]], np.int32)
    assert not on_a_circle(8, angles).may_differ(other, 1e-6).any()
    made = on_a_circle(8, angles)
    short = replace(made, raw=made.raw / 1000)
    assert short.may_differ(other, 1e-6).tolist() == [[[True, False]]]
