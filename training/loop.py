"""Share what training scripts do: warm-up and cosine, averaged weights, progress, resuming."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

REPORT_EVERY = 100
SAVE_EVERY = 500
BETAS = (0.9, 0.95)
MOST_GRADIENT = 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Define a linear warm-up to the peak, then a cosine down to `floor` of it."""

    steps: int
    peak: float
    warmup: int
    floor: float = 0.01

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.peak * (self.floor + (1 - self.floor) * cosine)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random generator of a step, by its number: a resumed run draws the same."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


class Run:
    """Train a model: AdamW, an exponential moving average of its weights, its saved state.

    `buffers` are further tensors that belong to the state; they are filled in place.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Iterable[dict[str, Any]],
        schedule: Schedule,
        path: Path,
        *,
        ema_decay: float,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model = model
        self.schedule = schedule
        self.seconds = 0.0
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._optimizer = torch.optim.AdamW(groups, schedule.peak, betas=BETAS)
        self._ema_decay = ema_decay
        self._kept = dict(buffers or {})
        self._path = path
        self._start = 0
        self._sums: dict[str, float] = {}
        if path.exists():
            self._resume()

    def _resume(self) -> None:
        state = torch.load(self._path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        for name, tensor in self._kept.items():
            tensor.copy_(state[name])
        self._start, self.seconds = state["step"], state["seconds"]

    def steps(self) -> Iterator[int]:
        """Yield the steps that are left; report progress and save the state now and then."""
        tick = time.monotonic()
        for step in range(self._start, self.schedule.steps):
            for group in self._optimizer.param_groups:
                group["lr"] = self.schedule.rate(step)
            yield step
            done = step + 1
            if done % REPORT_EVERY == 0 or done == self.schedule.steps:
                self.seconds += time.monotonic() - tick
                tick = time.monotonic()
                self._report(done, step % REPORT_EVERY + 1)
            if self.is_measured(step):
                self._save(done)

    def is_measured(self, step: int) -> bool:
        """Return whether the state is saved, and held-out images are measured, after a step."""
        return (step + 1) % SAVE_EVERY == 0 or step + 1 == self.schedule.steps

    def update(self, loss: Tensor, step: int) -> None:
        """Do one step of the optimizer, and of the average, which moves faster in the beginning."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MOST_GRADIENT)
        self._optimizer.step()
        decay = min(self._ema_decay, (1 + step) / (10 + step))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter.detach(), 1 - decay)

    def log(self, **values: float) -> None:
        """Record figures of a step, whose means are reported."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def say(self, step: int, text: str) -> None:
        click.echo(f"step {step}/{self.schedule.steps}  {text}", err=True)

    def _report(self, done: int, count: int) -> None:
        figures = "  ".join(f"{name} {total / count:.4f}" for name, total in self._sums.items())
        self.say(done, f"{figures}  {self.seconds:.0f} s")
        self._sums.clear()

    def _save(self, done: int) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "average": self.average,
            "step": done,
            "seconds": self.seconds,
            **self._kept,
        }
        torch.save(state, self._path.with_suffix(".tmp"))
        self._path.with_suffix(".tmp").replace(self._path)


def tell(folder: Path, values: Mapping[str, Any]) -> None:
    """Put values into the `config.json` beside the weights, which keeps its others."""
    path = folder / "config.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if values:
        path.write_text(json.dumps(known | dict(values)) + "\n")


def write_record(path: Path, schedule: Schedule, seconds: float, **others: Any) -> None:
    """Write what a training was, as JSON beside the weights."""
    record = {
        "steps": schedule.steps,
        "peak_lr": schedule.peak,
        **others,
        "seconds": round(seconds),
        "torch": torch.__version__,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
