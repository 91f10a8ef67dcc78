"""The pieces of the transformers' training: orders, their logits, dropped views, the measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from arvg_trt.families.par.config import ParConfig
from arvg_trt.families.par.model import ParTransformer
from arvg_trt.families.par.spec import generation_order
from arvg_trt.families.rar.config import RarConfig
from arvg_trt.families.rar.model import RarTransformer
from arvg_trt.families.variants import MODELS
from arvg_trt.training import mar_loss
from arvg_trt.training.generator_minis import (
    MAR,
    MINIS,
    Batch,
    diffusion_loss,
    initialize_rar,
    par_loss,
)
from arvg_trt.training.rar_orders import random_orders, rar_logits
from arvg_trt.training.train_generator import parameter_groups, unigram_entropy, views


def batch(progress: float, count: int = 200, length: int = 9) -> Batch:
    tokens = torch.randint(0, 32, (count, length), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % 10
    return Batch(tokens, labels, progress, torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def rar() -> RarTransformer:
    torch.manual_seed(0)
    model = RarTransformer(RarConfig(2, 32, 2, length=9, num_classes=10, vocab_size=32))
    initialize_rar(model)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("progress, share", [(0.0, 1.0), (0.25, 1.0), (0.375, 0.5), (0.5, 0.0)])
def test_orders_are_annealed_from_random_ones_to_the_raster(progress: float, share: float) -> None:
    orders = random_orders(200, 9, progress, torch.Generator().manual_seed(2))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(9).expand(200, -1))
    found = (orders != torch.arange(9)).any(dim=1).double().mean().item()
    assert found == pytest.approx(share, abs=0.1)
    assert found == share or 0 < share < 1


def test_in_raster_order_the_training_runs_the_model_itself(rar: RarTransformer) -> None:
    part = batch(1.0, count=3)
    with torch.no_grad():
        found = rar_logits(rar, part.tokens, part.labels, torch.arange(9).expand(3, -1))
        wanted = rar(part.labels, part.tokens[:, :-1])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_prediction_sees_earlier_tokens_of_its_order_and_where_it_is(rar: RarTransformer) -> None:
    part = batch(0.0, count=1)
    order = torch.tensor([[4, 0, 7, 2, 8, 1, 3, 6, 5]])
    with torch.no_grad():
        before = rar_logits(rar, part.tokens, part.labels, order)
        changed = part.tokens.clone()
        changed[0, 7] += 1  # the third of the order: what comes fourth sees it
        after = rar_logits(rar, changed, part.labels, order)
        swapped = order.clone()
        swapped[0, 3:5] = order[0, [4, 3]]
        elsewhere = rar_logits(rar, part.tokens, part.labels, swapped)
    differs = (before != after).any(dim=2)[0]
    assert not differs[:3].any() and differs[3:].all()
    assert torch.equal(before[:, :3], elsewhere[:, :3])
    assert not torch.equal(before[:, 3], elsewhere[:, 3])


def test_only_rows_that_nothing_reads_are_cleared() -> None:
    torch.manual_seed(0)
    model = RarTransformer(RarConfig(2, 32, 2, length=9, num_classes=10, vocab_size=32))
    initialize_rar(model)
    part = batch(0.0)
    orders = random_orders(200, 9, 0.0, torch.Generator().manual_seed(2))
    for parameter in model.parameters():
        parameter.data += 0.1  # gates are shut at first: nothing would reach the tables
    rar_logits(model, part.tokens, part.labels, orders).square().sum().backward()
    cleared = RarTransformer(model.config)
    initialize_rar(cleared)
    tables = ("pos_embed", "target_aware_pos_embed", "timesteps_embeddings")
    for name in tables:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        reached = gradient[0].any(dim=1)
        is_zero = ~cleared.get_parameter(name)[0].any(dim=1)
        assert is_zero.sum() >= 99 and not (reached & is_zero).any()


def test_a_par_predicts_each_token_in_its_order_of_generation() -> None:
    """A head that knows the right answer by its place alone has no loss."""
    model = ParTransformer(ParConfig(1, 16, 2, length=16, num_classes=2, vocab_size=16))
    tokens = torch.arange(16).expand(2, -1)
    order = torch.from_numpy(generation_order(4, 4))
    model.forward = lambda labels, shown: 50.0 * F.one_hot(order).expand(2, -1, -1)  # type: ignore
    part = Batch(tokens, torch.zeros(2).long(), 0.0, torch.Generator())
    assert par_loss(model, model, part).item() == pytest.approx(0, abs=1e-6)


def test_a_llamagen_begins_with_the_weights_of_par_and_predicts_in_raster_order() -> None:
    mini = MINIS["llamagen-mini"]
    model = mini.build()
    mini.initialize(model)
    trained = load_file(MODELS / "par-mini" / "par.safetensors")
    state = model.state_dict()
    assert trained.keys() - state.keys() == {"spe_tok_embeddings.special_embeddings.weight"}
    assert all(torch.equal(tensor, trained[name].float()) for name, tensor in state.items())
    tokens = torch.arange(64).expand(2, -1)
    seen = []

    def foresee(labels: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        seen.append(shown)
        return 50.0 * F.one_hot(torch.arange(64), 512).expand(2, -1, -1)

    model.forward = foresee  # type: ignore[assignment, method-assign]
    part = Batch(tokens, torch.zeros(2).long(), 0.0, torch.Generator())
    assert mini.loss(model, model, part).item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(seen[0], tokens[:, :-1])


def test_a_mar_sees_latents_drawn_from_their_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MINIS["mar-mini"].build()
    tokens = torch.tensor([0.5, 2 * np.log(2.0)]).repeat_interleave(8).expand(64, 64, -1).float()
    seen = []
    monkeypatch.setattr(mar_loss, "mar_loss", lambda _, latents, *args: seen.append(latents))
    part = Batch(tokens, torch.zeros(64).long(), 0.0, torch.Generator().manual_seed(0))
    diffusion_loss(model, model, part)  # type: ignore[arg-type]
    scale = MAR.latent_scale
    assert seen[0].shape == (64, 64, 8)
    assert seen[0].mean().item() == pytest.approx(0.5 * scale, abs=0.05 * scale)
    assert seen[0].std().item() == pytest.approx(2.0 * scale, rel=0.02)


def test_views_are_the_pictures_then_flipped_then_moved_ones() -> None:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    found = views(images, 4, seed=0)
    assert torch.equal(found[0], images) and torch.equal(found[1], images.flip(-1))
    assert all(view.dtype == torch.uint8 and view.shape == images.shape for view in found)
    assert {len(np.unique(view)) for view in found} == {256}


def test_the_entropy_of_tokens_is_that_of_their_shares() -> None:
    tokens = torch.tensor([[0, 0, 5, 5], [5, 5, 9, 0]], dtype=torch.int16)
    shares = np.array([3, 4, 1]) / 8
    assert unigram_entropy(tokens) == pytest.approx(-(shares * np.log(shares)).sum())


def test_tables_biases_and_norms_do_not_decay(rar: RarTransformer) -> None:
    decayed, others = parameter_groups(rar)
    names = {id(p): n for n, p in rar.named_parameters()}
    kept = {names[id(p)] for p in decayed["params"]}  # type: ignore[attr-defined]
    assert "blocks.0.attn.qkv.weight" in kept and "lm_head.weight" in kept
    assert not any("emb" in n or n.endswith("bias") or "norm.weight" in n for n in kept)
    assert len(kept) + len(others["params"]) == len(names)  # type: ignore[arg-type]
