"""The GSQ tokenizers against their formulas in float64, from the state_dict alone."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import read_all
from arvg_trt.families.gsq import model as gsq
from arvg_trt.families.gsq.blocks import DepthToSpace
from arvg_trt.families.gsq.config import GsqConfig, Normalization
from arvg_trt.families.gsq.model import (
    GsqQuantizer,
    GsqTokenizer,
    infer_gsq_config,
    load_gsq,
    nearest_in_parts,
)

from ..shared.formulas import State, close, images, in_double, swish
from ..shared.models import Payload
from .models import GROUPED, SINGLE, random_gsq, write_checkpoint

Array = np.ndarray


def unit(x: Tensor, eps: float) -> Tensor:
    """32 groups of neighbouring channels, without weights."""
    groups = x.reshape(len(x), 32, -1)
    centred = groups - groups.mean(2, keepdim=True)
    return (centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()).reshape(x.shape)


def normed(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias = (state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return unit(x, 1e-5) * weight + bias


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Padded alike on all sides, also where it strides."""
    weight = state[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=padding, stride=stride)


def block(state: State, name: str, x: Tensor) -> Tensor:
    h = conv(state, f"{name}.net.2", swish(normed(state, f"{name}.net.0", x)))
    h = conv(state, f"{name}.net.6", swish(normed(state, f"{name}.net.3", h)))
    return h + (conv(state, f"{name}.skip", x) if f"{name}.skip.weight" in state else x)


def depth_to_space(x: Tensor) -> Tensor:
    """Pixel (dy, dx) of each 2x2 is the channels' quarter 2 * dy + dx."""
    n, c, h, w = x.shape
    out = x.new_zeros(n, c // 4, 2 * h, 2 * w)
    for dy in range(2):
        for dx in range(2):
            start = (2 * dy + dx) * (c // 4)
            out[:, :, dy::2, dx::2] = x[:, start : start + c // 4]
    return out


def adaptive(state: State, name: str, x: Tensor, quantized: Tensor) -> Tensor:
    values = quantized.flatten(2)
    mean = values.mean(2)
    variance = (values - mean[..., None]).square().sum(2) / (values.shape[2] - 1)
    scale = (variance + 1e-6).sqrt() @ state[f"{name}.gamma.weight"].T + state[f"{name}.gamma.bias"]
    shift = mean @ state[f"{name}.beta.weight"].T + state[f"{name}.beta.bias"]
    return unit(x, 1e-6) * scale[..., None, None] + shift[..., None, None]


def run_blocks(state: State, half: str, x: Tensor, quantized: Tensor | None = None) -> Tensor:
    """Run blocks, each of the kind that its keys say."""
    count = len({k.split(".")[2] for k in state if k.startswith(f"{half}.blocks.")})
    for i in range(count):
        name = f"{half}.blocks.{i}"
        if f"{name}.net.0.weight" in state:
            x = block(state, name, x)
        elif f"{name}.gamma.weight" in state:
            assert quantized is not None
            x = adaptive(state, name, x, quantized)
        elif half == "encoder":
            x = conv(state, f"{name}.conv", x, stride=2)
        else:
            x = depth_to_space(conv(state, f"{name}.conv", x))
    return x


def encode_by_formula(state: State, image: Tensor) -> Tensor:
    h = run_blocks(state, "encoder", conv(state, "encoder.conv_in", image))
    return conv(state, "encoder.fianl_layers.2", swish(normed(state, "encoder.fianl_layers.0", h)))


def decode_by_formula(state: State, quantized: Tensor) -> Tensor:
    h = run_blocks(state, "decoder", conv(state, "decoder.conv_in", quantized), quantized)
    return conv(state, "decoder.final_layers.2", swish(normed(state, "decoder.final_layers.0", h)))


def normalised(x: Array, kind: Normalization) -> Array:
    if kind == "clip":
        return np.clip(x, -1, 1)
    if kind == "none":
        return x
    power = {"l1": 1, "l2": 2}[kind]
    length = (np.abs(x) ** power).sum(-1, keepdims=True) ** (1 / power)
    return x / np.maximum(length, 1e-12)


def distances(latent: Array, codebook: Array, groups: int, kind: Normalization) -> Array:
    """[N, D, h, w], [V, d] -> squared distances [N, h, w, G, V]; group g has channels g * d ..."""
    n, _, h, w = latent.shape
    d = codebook.shape[1]
    vectors = np.stack([latent[:, g * d : (g + 1) * d] for g in range(groups)], axis=1)
    vectors = normalised(vectors.transpose(0, 3, 4, 1, 2), kind)
    assert vectors.shape == (n, h, w, groups, d)
    return ((vectors[..., None, :] - normalised(codebook, kind)) ** 2).sum(-1)


def looked_up(codes: Array, codebook: Array) -> Array:
    """[N, h, w, G] -> [N, D, h, w]: raw rows, the groups one after the other."""
    rows = codebook[codes]
    return rows.reshape(*codes.shape[:3], -1).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("config", [GROUPED, SINGLE], ids=["two groups", "one group"])
def test_latents_codes_and_images_are_the_formulas(config: GsqConfig) -> None:
    model, image = random_gsq(config), images(config)
    state = in_double(model)
    latent = encode_by_formula(state, image.double())
    close(model.encode(image), latent)
    codebook = state["quantizers.codebook.weight"].numpy()
    wanted = distances(latent.numpy(), codebook, config.groups, "l2").argmin(-1)
    codes = model.codes(model.encode(image))
    assert codes.shape == wanted.shape[: 4 if config.groups > 1 else 3]
    assert np.array_equal(codes.reshape(wanted.shape), wanted)
    assert len(np.unique(wanted)) > 8
    quantized = torch.from_numpy(looked_up(wanted, codebook))
    close(model.decode(codes), decode_by_formula(state, quantized))


def quantizer(config: GsqConfig, seed: int = 0) -> GsqQuantizer:
    torch.manual_seed(seed)
    found = GsqQuantizer(config).requires_grad_(False)
    found.codebook.weight.mul_(0.5 + torch.rand(config.vocab_size, 1))
    return found


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 4),
    width=st.integers(1, 5),
    kind=st.sampled_from(["l2", "l1", "none", "clip"]),
    seed=st.integers(0, 99),
)
def test_a_code_is_the_nearest_up_to_rounding(
    groups: int, width: int, kind: Normalization, seed: int
) -> None:
    if kind == "clip":
        width = 1
    config = replace(GROUPED, latent_channels=groups * width, groups=groups, normalization=kind)
    made = quantizer(config, seed)
    latent = torch.randn(2, groups * width, 3, 2)
    codebook = made.codebook.weight.double().numpy()
    every = distances(latent.double().numpy(), codebook, groups, kind)
    codes = made.codes(latent)
    assert codes.dtype == torch.int64
    chosen = np.take_along_axis(every, codes.numpy().reshape(*every.shape[:-1], 1), -1)[..., 0]
    assert (chosen <= every.min(-1) + 1e-5).all()
    rows = looked_up(codes.numpy().reshape(every.shape[:-1]), codebook)
    assert np.array_equal(made.lookup(codes).double(), rows)


def test_search_by_parts_is_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, table = (torch.randn(n, 3, generator=generator) for n in (60, 50))
    whole = nearest_in_parts(vectors, table)
    monkeypatch.setattr(gsq, "PART", 8)
    assert torch.equal(nearest_in_parts(vectors, table), whole)
    assert (whole >= 8).any() and (whole < 8).any()


def test_of_equal_codes_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of one channel, normalised by length, are equal by sign."""
    monkeypatch.setattr(gsq, "PART", 2)
    table = F.normalize(torch.tensor([[-0.3], [-2.0], [0.7], [0.1], [5.0], [-9.0]]), dim=-1)
    found = nearest_in_parts(torch.tensor([[1.0], [-1.0], [0.0]]), table)
    assert found.tolist() == [2, 0, 0]


def test_training_passes_gradients_straight_to_the_normalised_latent() -> None:
    made = quantizer(GROUPED).requires_grad_(True)
    latent = torch.randn(2, 8, 3, 3, requires_grad=True)
    quantized, loss = made.straight_through(latent)
    torch.testing.assert_close(quantized, made.lookup(made.codes(latent)))
    vectors = latent.detach().numpy().reshape(2, 2, 4, 3, 3)
    vectors = vectors / np.sqrt((vectors**2).sum(2, keepdims=True))
    error = ((quantized.detach().numpy() - vectors.reshape(2, 8, 3, 3)) ** 2).mean()
    assert float(loss.detach()) == pytest.approx(1.25 * error, rel=1e-5)
    weights = torch.randn_like(quantized)
    (found,) = torch.autograd.grad((quantized * weights).sum(), latent, retain_graph=True)
    plain = F.normalize(latent.unflatten(1, (2, 4)), dim=2).flatten(1, 2)
    (wanted,) = torch.autograd.grad((plain * weights).sum(), latent)
    torch.testing.assert_close(found, wanted)
    (rows,) = torch.autograd.grad(loss, made.codebook.weight)
    assert rows.abs().sum() > 0


def test_a_codebook_begins_on_the_unit_sphere() -> None:
    lengths = GsqQuantizer(GROUPED).codebook.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    clipped = GsqQuantizer(replace(GROUPED, groups=8, normalization="clip")).codebook.weight
    assert clipped.abs().max() <= 1 and len(clipped.unique()) == GROUPED.vocab_size


def test_depth_to_space_folds_into_the_order_of_its_rows() -> None:
    torch.manual_seed(0)
    block = DepthToSpace(8).requires_grad_(False)
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(block.folded()(x), block(x))
    torch.testing.assert_close(block(x), depth_to_space(block.conv(x)))


def test_the_published_configuration_has_its_keys_and_parameters() -> None:
    published = GsqConfig()
    with torch.device("meta"):
        model = GsqTokenizer(published)
    state = model.state_dict()
    assert sum(p.numel() for p in model.encoder.parameters()) == 30_131_336
    assert sum(p.numel() for p in model.decoder.parameters()) == 40_810_499
    assert sum(p.numel() for p in model.parameters()) == 71_466_123
    assert infer_gsq_config(state, "here", published.normalization) == published
    assert published.stride == 8
    skips = [k for k in state if k.endswith("skip.weight")]
    assert skips == [
        "encoder.blocks.3.skip.weight",
        "encoder.blocks.10.skip.weight",
        "decoder.blocks.7.skip.weight",
        "decoder.blocks.16.skip.weight",
    ]
    resampled = [k for k in state if k.endswith("conv.weight")]
    assert resampled == [
        *(f"encoder.blocks.{i}.conv.weight" for i in (2, 6, 9)),
        *(f"decoder.blocks.{i}.conv.weight" for i in (5, 10, 14)),
    ]
    assert [k for k in state if k.endswith("gamma.weight")] == [
        f"decoder.blocks.{i}.gamma.weight" for i in (2, 6, 11, 15)
    ]


@pytest.mark.parametrize(
    ("channels_mult", "latent", "groups", "thousands", "megabytes"),
    [
        ((1, 2, 2, 4), 16, 1, 8, 285),
        ((1, 2, 2, 4), 32, 1, 256, 318),
        ((1, 2, 2, 4), 64, 1, 512, 420),
        ((1, 1, 2, 2, 4, 4), 128, 8, 256, 436),
    ],
)
def test_published_files_have_their_sizes(
    channels_mult: tuple[int, ...], latent: int, groups: int, thousands: int, megabytes: int
) -> None:
    with torch.device("meta"):
        model = GsqTokenizer(GsqConfig(128, channels_mult, 2, latent, groups, thousands << 10))
    assert round(4e-6 * sum(p.numel() for p in model.parameters())) == megabytes


def test_the_pickled_configuration_of_a_checkpoint_never_runs(tmp_path: Path) -> None:
    """The official file has the constructor's arguments as pickled bytes beside the weights."""
    path = write_checkpoint(random_gsq(), tmp_path)
    pickle.loads(torch.load(path, weights_only=True)["config"])
    assert (tmp_path / "ran").exists()  # what must not happen
    (tmp_path / "ran").unlink()
    assert load_gsq(read_all([path]), "here", "l2").config == GROUPED
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_is_a_payload_itself_is_refused(tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "checkpoint.pt"
    torch.save({"model_state_dict": random_gsq().state_dict(), "config": Payload(ran)}, path)
    with pytest.raises(ExportError, match="pickle asks for"):
        read_all([path])
    assert not ran.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_checkpoint_loads_strictly(dtype: torch.dtype) -> None:
    stored = {k: v.to(dtype) for k, v in random_gsq(SINGLE).state_dict().items()}
    found = load_gsq(stored, "here", "l2")
    assert found.config == SINGLE
    assert all(torch.equal(v, stored[k].float()) for k, v in found.state_dict().items())


def test_what_shapes_do_not_tell_is_the_callers() -> None:
    state = random_gsq(replace(GROUPED, groups=8, normalization="clip")).state_dict()
    with pytest.raises(ExportError, match=r"has no config.yaml.*use_l2_norm"):
        load_gsq(state, "here")
    assert load_gsq(state, "here", "clip").config.normalization == "clip"
    assert load_gsq(state, "here", "l2").config.normalization == "l2"
    with pytest.raises(ExportError, match="here: clips codes of 4 channels"):
        load_gsq(random_gsq().state_dict(), "here", "clip")


@pytest.mark.parametrize(("latent", "groups"), [(8, 3), (8, 0), (0, 1)])
def test_groups_divide_the_channels(latent: int, groups: int) -> None:
    with pytest.raises(ExportError, match=f"{latent} latent channels for {groups} groups"):
        replace(GROUPED, latent_channels=latent, groups=groups)
