"""The pieces of the tokenizer's training: straight-through codes, restarts, the pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from arvg_trt.families.gsq.model import GsqTokenizer
from arvg_trt.families.maskgit_vq.model import MaskgitVq
from arvg_trt.families.var_vqvae.model import VarVqvae
from arvg_trt.training.perception import Perception, difference
from arvg_trt.training.tiny_imagenet import (
    ARCHIVE,
    LabelledImages,
    load_images,
    moved,
    to_signed,
    training_batch,
)
from arvg_trt.training.tokenizer_minis import (
    DIVERGENCE,
    LENGTH,
    MINIS,
    VAR,
    Quantized,
    draw,
    quantize_groups,
    quantize_map,
    quantize_scales,
)
from arvg_trt.training.train_tokenizer import held_out_psnr, restart_codes


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two classes with a picture on each side of the split, one of them grey."""
    with zipfile.ZipFile(tmp_path / ARCHIVE, "w") as stream:
        stream.writestr("README.txt", "not a picture")
        for label, name in ((3, "monarch"), (8, "pizza")):
            for k in (449, 450):
                data = io.BytesIO()
                grey = Image.new("L", (64, 64), 20 * label + k % 2)
                (grey if k == 449 else grey.convert("RGB")).save(data, "JPEG", quality=100)
                stream.writestr(f"{label}_{name}/n0{label}_{k}.JPEG", data.getvalue())
    return tmp_path


def test_pictures_from_450_on_are_held_out(archive: Path) -> None:
    training, held_out = load_images(archive)
    for part, odd in ((training, 1), (held_out, 0)):
        assert part.images.shape == (2, 3, 64, 64) and part.images.dtype == torch.uint8
        assert part.labels.tolist() == [3, 8]
        assert part.images.float().mean(dim=(1, 2, 3)).tolist() == [60 + odd, 160 + odd]


def test_a_batch_depends_on_the_seed_and_the_step_alone() -> None:
    images = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8)
    pictures = LabelledImages(images, torch.arange(20))
    first, labels = training_batch(pictures, 7, seed=0, size=5)
    torch.rand(3)
    assert torch.equal(training_batch(pictures, 7, seed=0, size=5)[0], first)
    assert not torch.equal(training_batch(pictures, 8, seed=0, size=5)[0], first)
    assert not torch.equal(training_batch(pictures, 7, seed=1, size=5)[0], first)
    assert first.min() >= -1 and first.max() <= 1
    for image, label in zip(first, labels, strict=True):
        original = to_signed(images[label])
        assert torch.equal(image, original) or torch.equal(image, original.flip(-1))


def test_moved_pictures_repeat_their_borders() -> None:
    ramp = torch.arange(64.0).expand(1, 3, 64, 64)
    found = {
        tuple(moved(ramp, 2, torch.Generator().manual_seed(seed))[0, 0, 0, :3].tolist())
        for seed in range(40)
    }
    assert found == {(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4)}


def test_codes_of_scales_are_passed_through_and_the_loss_is_their_mean() -> None:
    torch.manual_seed(0)
    quantizer = VarVqvae(VAR).quantize
    latent = torch.randn(2, 16, 8, 8, requires_grad=True)
    found = quantize_scales(quantizer, latent)
    codes = quantizer.encode(latent.detach())
    torch.testing.assert_close(found.through, quantizer.decode(codes), atol=1e-5, rtol=0)
    total, errors, use = torch.zeros(2, 16, 8, 8), [], torch.zeros(512)
    for scale, part in enumerate(quantizer.split(codes)):
        hits = torch.bincount(part.flatten(), minlength=512).float()
        torch.testing.assert_close(quantizer.ema_vocab_hit_SV[scale], 0.01 * hits)
        use += hits
        total = total + quantizer.contribution(scale, part)
        errors.append(float((total - latent.detach()).detach().square().mean()))
    assert found.loss.item() == pytest.approx(1.25 * np.mean(errors), rel=1e-5)
    assert torch.equal(found.use, use)
    assert found.vectors.shape == (2 * sum(VAR.lengths), 16)
    check_gradients(found, latent, quantizer.embedding.weight)


def check_gradients(found: Quantized, latent: Tensor, codebook: Tensor) -> None:
    """Images move the latent alone, as if it were not quantized; the loss moves the codes."""
    found.through.sum().backward(retain_graph=True)
    assert latent.grad is not None and torch.equal(latent.grad, torch.ones_like(latent))
    assert codebook.grad is None
    found.loss.backward()
    assert codebook.grad is not None and codebook.grad.abs().sum() > 0


def test_the_codes_of_a_map_are_passed_through() -> None:
    torch.manual_seed(0)
    model = MINIS["rar-mini"].build()
    assert isinstance(model, MaskgitVq)
    latent = torch.randn(2, 8, 8, 8, requires_grad=True)
    found = quantize_map(model, latent)
    vectors = latent.detach().permute(0, 2, 3, 1).reshape(-1, 8)
    distances = (vectors[:, None].double() - model.codebook.detach().double()).square().sum(dim=2)
    codes = distances.argmin(dim=1)
    wanted = model.codebook.detach()[codes].reshape(2, 8, 8, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(found.through, wanted, atol=1e-5, rtol=0)
    error = float((wanted - latent.detach()).square().mean())
    lengths = float((vectors.square().sum(dim=1) - 1).square().mean())
    assert found.loss.item() == pytest.approx(1.25 * error + LENGTH * lengths, rel=1e-5)
    assert torch.equal(found.use, torch.bincount(codes, minlength=512).float())
    assert torch.equal(found.vectors, vectors)
    check_gradients(found, latent, model.codebook)


def test_the_codes_of_groups_are_passed_through() -> None:
    torch.manual_seed(0)
    model = MINIS["gsq-mini"].build()
    assert isinstance(model, GsqTokenizer)
    latent = torch.randn(2, 16, 8, 8)
    found = quantize_groups(model, latent)
    codes = model.codes(latent)
    torch.testing.assert_close(found.through, model.quantizers.lookup(codes), atol=1e-5, rtol=0)
    assert found.use is not None and found.vectors is not None
    assert torch.equal(found.use, torch.bincount(codes.flatten(), minlength=512).float())
    wanted = F.normalize(latent.permute(0, 2, 3, 1).reshape(-1, 4), dim=1)
    torch.testing.assert_close(found.vectors, wanted)


def test_a_latent_is_drawn_in_training_alone_and_held_near_the_normal_distribution() -> None:
    model = MINIS["mar-mini"].build()
    mean, deviation = 0.5, 2.0
    moments = torch.tensor([mean, 2 * np.log(deviation)]).repeat_interleave(50_000)
    moments = moments.reshape(1, 2, 250, 200).float()
    torch.manual_seed(0)
    found = draw(model, moments)  # type: ignore[arg-type]
    assert found.through.mean().item() == pytest.approx(mean, abs=0.04)
    assert found.through.std().item() == pytest.approx(deviation, rel=0.02)
    divergence = 0.5 * (mean**2 + deviation**2 - 1) - np.log(deviation)
    assert found.loss.item() == pytest.approx(DIVERGENCE * divergence, rel=1e-5)
    assert torch.equal(draw(model.eval(), moments).through, moments[:, :1])  # type: ignore[arg-type]


def test_the_perceived_difference_is_of_directions_and_leaves_the_wanted_picture_alone() -> None:
    torch.manual_seed(0)
    model = Perception().eval()
    found, wanted = (torch.rand(2, 3, 64, 64, requires_grad=True) for _ in range(2))
    loss = difference(model, found, wanted)
    pairs = zip(model.features(found), model.features(wanted), strict=True)
    cosines = [F.cosine_similarity(a, b, dim=1).mean() for a, b in pairs]
    assert loss.item() == pytest.approx(2 - 2 * torch.stack(cosines).mean().item(), rel=1e-4)
    assert difference(model, found, found).item() == 0
    loss.backward()
    assert wanted.grad is None and found.grad is not None and found.grad.abs().sum() > 0


def test_only_rarely_used_codes_are_restarted_in_every_table() -> None:
    tables = (torch.zeros(4, 2), torch.full((4, 2), 0.5))
    use = torch.tensor([100.0, 0.0, 1.0, 99.0])
    vectors = torch.tensor([[7.0, 7.0], [9.0, 9.0]])
    assert restart_codes(tables, use, vectors, torch.Generator().manual_seed(0)) == 2
    assert torch.equal(tables[0][1:3], tables[1][1:3])
    assert set(tables[0][1:3].flatten().tolist()) <= {7.0, 9.0}
    assert tables[0][[0, 3]].tolist() == [[0, 0], [0, 0]]


def test_psnr_of_the_held_out_pictures_is_of_8_bit_images() -> None:
    torch.manual_seed(0)
    mini = MINIS["var-mini"]
    weights = {k: v.clone() for k, v in mini.build().state_dict().items()}
    weights["decoder.conv_out.weight"].zero_()
    weights["decoder.conv_out.bias"].fill_(-1 + 2 * 100.3 / 255)  # 8 bits round it to 100
    images = torch.full((3, 3, 64, 64), 110, dtype=torch.uint8)
    found = held_out_psnr(mini, weights, images, "cpu")
    assert found == pytest.approx(10 * np.log10(255**2 / 100))
