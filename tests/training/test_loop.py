"""The loop that every training shares: its schedule, its average, and that it resumes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from arvg_trt.training import loop
from arvg_trt.training.loop import Run, Schedule, step_generator, tell, write_record

PEAK, DECAY = 1e-2, 0.9


def test_the_rate_rises_to_the_peak_then_falls_to_the_floor() -> None:
    schedule = Schedule(1000, 2.0, warmup=300)
    rates = [schedule.rate(step) for step in range(1001)]
    assert rates[0] == pytest.approx(2 / 300)
    assert max(rates) == rates[300] == 2.0
    assert all(a >= b for a, b in itertools.pairwise(rates[300:]))
    assert rates[-1] == pytest.approx(0.02)
    assert Schedule(1000, 2.0, warmup=300, floor=0.5).rate(1000) == pytest.approx(1.0)


def test_choices_depend_on_the_seed_and_the_step_alone() -> None:
    draws = {
        (seed, step): torch.rand(3, generator=step_generator(seed, step)).tolist()
        for seed in (0, 1)
        for step in (0, 1)
    }
    assert len({tuple(d) for d in draws.values()}) == 4
    torch.rand(5)
    assert torch.rand(3, generator=step_generator(1, 0)).tolist() == draws[1, 0]


def start(path: Path, steps: int, seen: Tensor) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    schedule = Schedule(steps, PEAK, warmup=2)
    return Run(model, groups, schedule, path, ema_decay=DECAY, buffers={"seen": seen})


def go(run: Run, seen: Tensor, until: int | None = None) -> None:
    for step in run.steps():
        x = torch.rand(4, 3, generator=step_generator(0, step))
        run.update((run.model(x) - x[:, :2].sum(dim=1, keepdim=True)).square().mean(), step)
        seen += 1
        run.log(loss=1.0)
        if until is not None and step + 1 == until:
            return


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 3)
    whole_seen, seen, resumed_seen = torch.zeros(1), torch.zeros(1), torch.zeros(1)
    whole = start(tmp_path / "whole.pt", 8, whole_seen)
    go(whole, whole_seen)
    interrupted = start(tmp_path / "state.pt", 8, seen)
    go(interrupted, seen, until=5)  # after what was saved at 3
    resumed = start(tmp_path / "state.pt", 8, resumed_seen)
    assert resumed_seen.item() == 3
    go(resumed, resumed_seen)
    assert resumed_seen.item() == whole_seen.item() == 8
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name])
    for mine, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_average_is_the_exponential_one_with_a_fast_beginning(tmp_path: Path) -> None:
    seen = torch.zeros(1)
    run = start(tmp_path / "state.pt", 20, seen)
    wanted = run.average["weight"].double().numpy().copy()
    for step in run.steps():
        x = torch.rand(4, 3, generator=step_generator(0, step))
        run.update(run.model(x).square().mean(), step)
        decay = min(DECAY, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * run.model.weight.detach().double().numpy()
    np.testing.assert_allclose(run.average["weight"].numpy(), wanted, rtol=1e-5)


def test_progress_names_the_means_of_what_was_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path / "state.pt", 4, torch.zeros(1))
    for step in run.steps():
        run.log(image=float(step))
    assert capsys.readouterr().err.startswith("step 4/4  image 1.5000  ")


def test_the_record_tells_what_the_training_was(tmp_path: Path) -> None:
    write_record(tmp_path / "training.json", Schedule(7, 0.5, warmup=1), 12.6, seed=3)
    assert json.loads((tmp_path / "training.json").read_text()) == {
        "steps": 7,
        "peak_lr": 0.5,
        "seed": 3,
        "seconds": 13,
        "torch": torch.__version__,
    }


def test_what_no_shape_tells_is_put_beside_what_was_told_before(tmp_path: Path) -> None:
    tell(tmp_path, {})
    assert not list(tmp_path.iterdir())
    tell(tmp_path, {"n_head": 4, "sampling": {"cfg": 1.0}})
    tell(tmp_path, {"n_head": 5})
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "n_head": 5,
        "sampling": {"cfg": 1.0},
    }
