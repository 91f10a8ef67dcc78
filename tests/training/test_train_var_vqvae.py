"""The pieces of the tokenizer's training: straight-through codes, restarts, the pictures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arvg_trt.export.tokenizers.var_vqvae import VarVqvae
from arvg_trt.training.tiny_imagenet import ARCHIVE, load_pictures
from arvg_trt.training.train_var_vqvae import (
    CONFIG,
    held_out_psnr,
    quantize,
    restart_codes,
    training_batch,
)


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
    training, held_out = load_pictures(archive)
    for part, odd in ((training, 1), (held_out, 0)):
        assert part.images.shape == (2, 3, 64, 64) and part.images.dtype == torch.uint8
        assert part.labels.tolist() == [3, 8]
        assert part.images.float().mean(dim=(1, 2, 3)).tolist() == [60 + odd, 160 + odd]


def test_a_batch_depends_on_the_seed_and_the_step_alone() -> None:
    images = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8)
    first = training_batch(images, 7, seed=0)
    torch.rand(3)
    assert torch.equal(training_batch(images, 7, seed=0), first)
    assert not torch.equal(training_batch(images, 8, seed=0), first)
    assert not torch.equal(training_batch(images, 7, seed=1), first)
    assert first.min() >= -1 and first.max() <= 1


def test_codes_are_passed_through_and_the_loss_is_the_mean_over_scales() -> None:
    torch.manual_seed(0)
    quantizer = VarVqvae(CONFIG).quantize
    latent = torch.randn(2, 16, 8, 8, requires_grad=True)
    through, loss, hits, vectors = quantize(quantizer, latent)
    codes = quantizer.encode(latent.detach())
    torch.testing.assert_close(through, quantizer.decode(codes), atol=1e-5, rtol=0)
    total, errors = torch.zeros(2, 16, 8, 8), []
    for scale, part in enumerate(quantizer.split(codes)):
        assert torch.equal(hits[scale], torch.bincount(part.flatten(), minlength=512).float())
        total = total + quantizer.contribution(scale, part)
        errors.append(float((total - latent.detach()).detach().square().mean()))
    assert loss.item() == pytest.approx(1.25 * np.mean(errors), rel=1e-5)
    assert vectors.shape == (2 * sum(CONFIG.lengths), 16)
    through.sum().backward(retain_graph=True)
    assert torch.equal(latent.grad, torch.ones_like(latent))
    assert quantizer.embedding.weight.grad is None
    loss.backward()
    assert quantizer.embedding.weight.grad.abs().sum() > 0


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
    weights = {k: v.clone() for k, v in VarVqvae(CONFIG).state_dict().items()}
    weights["decoder.conv_out.weight"].zero_()
    weights["decoder.conv_out.bias"].fill_(-1 + 2 * 100.3 / 255)  # 8 bits round it to 100
    images = torch.full((3, 3, 64, 64), 110, dtype=torch.uint8)
    assert held_out_psnr(weights, images, "cpu") == pytest.approx(10 * np.log10(255**2 / 100))
