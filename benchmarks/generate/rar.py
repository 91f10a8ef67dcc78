"""Time RAR's one-token decode beside eager PyTorch with the same caching, at real width.

python -m arvg_trt.benchmarks.generate.rar --model rar-b --threads 2

Both run FP32 on the CPU in one process, interleaved: as many single-token steps, from the same
cache and with the same tokens, as one run of condition.onnx is good for, which is timed with them.
Eager PyTorch runs twice: with the same caching, all of those positions modulated at once, and
modulating in every step, as the official code does. Weights of published sizes are random, which
changes no shape. Logits of all are compared first. A profile tells what the loop costs outside the
graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...families.rar.config import RarConfig
from ...families.rar.model import RarTransformer
from ...families.variants import find_model
from ...runtime.folders import read_spec
from ...runtime.generator import Generator
from ...runtime.kv_cache import KvCache
from ...runtime.sessions.open import fast_session
from ...validate.metrics.latency import interleaved, ratio
from ..common import RESULTS, environment, environment_line, markdown_table, write_results
from ..random_checkpoint import load_transformer, weights_of
from .generate import export, profile, profile_table

KeyValue = tuple[Tensor, Tensor]
OURS = "ONNX Runtime step"
EAGER = "eager PyTorch step, the same caching"
OFFICIAL = "eager PyTorch step that modulates, as the official code"
CLASS = 207


@dataclass(frozen=True)
class Window:
    """Hold labels of all rows, and the sequence [rows, P + n], of which n tokens are decoded."""

    config: RarConfig
    labels: Tensor
    sequence: Tensor
    past: int

    @property
    def positions(self) -> range:
        return range(self.past, self.sequence.shape[1])


def random_window(model: RarTransformer, batch_size: int, past: int, count: int) -> Window:
    """Return `count` positions behind `past`, of random tokens, for images under guidance."""
    config = model.config
    classes = torch.tensor([CLASS % config.num_classes, config.num_classes])
    labels = classes.repeat_interleave(batch_size)
    tokens = torch.randint(config.vocab_size, (len(labels), past + count - 2))
    return Window(config, labels, model.sequence(labels, tokens), past)


@torch.inference_mode()
def eager_decode(model: RarTransformer, window: Window, ahead: int) -> Callable[[], Tensor]:
    """Return a run over the window's positions, from a cache that is made here.

    `ahead` positions are modulated at once.
    """
    _, start = model.run(window.labels, window.sequence[:, 2 : window.past])

    @torch.inference_mode()
    def decode() -> Tensor:
        past: list[KeyValue] = start
        for k, position in enumerate(window.positions):
            place = k % ahead
            if place == 0:
                ids = torch.tensor(window.positions[k : k + ahead])
                condition = model.conditions(window.labels, ids)
                modulations = list(model.modulations(condition))
                head = model.adaln_before_head(condition)
            logits, past = model.step(
                model.embed(window.sequence[:, position : position + 1], ids[place : place + 1]),
                [rows[:, place : place + 1] for rows in modulations],
                head[:, place : place + 1],
                past,
            )
        return logits

    return decode


def graph_decode(folder: Path, threads: int, window: Window) -> Callable[[], NDArray[Any]]:
    """Return the same with the graphs, all positions of the window modulated by one run."""
    condition, step = (
        fast_session(folder / f"{name}.onnx", threads) for name in ("condition", "step")
    )
    config, labels, sequence = window.config, window.labels.numpy(), window.sequence.numpy()
    rows = len(labels)

    def modulations(positions: range) -> dict[str, NDArray[Any]]:
        return condition.run({"labels": labels, "position_ids": np.array(positions)})

    def run(cache: KvCache, ahead: dict[str, NDArray[Any]], n: int) -> tuple[NDArray[Any], KvCache]:
        first = cache.length
        outputs = step.run_on_device(
            {
                "tokens": sequence[:, first : first + n],
                "position_ids": np.arange(first, first + n),
                **ahead,
                **cache.feeds(rows),
            }
        )
        return outputs["logits"].numpy(), cache.after(outputs, n)

    empty = KvCache.empty(step, (rows, config.heads, 0, config.head_dim))
    _, start = run(empty, modulations(range(window.past)), window.past)

    def decode() -> NDArray[Any]:
        cache, ahead = start, modulations(window.positions)
        for k in range(len(window.positions)):
            one = {name: value[:, k : k + 1] for name, value in ahead.items()}
            logits, cache = run(cache, one, 1)
        return logits

    return decode


@click.command()
@click.option("--model", default="rar-b", show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--past", default=128, show_default=True, help="Tokens in the cache at first.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--workdir", type=click.Path(path_type=Path), help="For temporary files.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    model: str,
    batch_size: int,
    past: int,
    threads: int,
    rounds: int,
    workdir: Path | None,
    out: Path,
) -> None:
    """Measure and write `generate_rar_SIZE.md` and `.json`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    size = model.removeprefix("rar-")
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        click.echo("exporting", err=True)
        checkpoint, exported = export(model, Path(scratch))
        _, spec = read_spec(exported)
        transformer = cast(RarTransformer, load_transformer(checkpoint, find_model(model)))
        config = transformer.config
        # As many positions as the loop modulates at once.
        _, count, _ = spec.axis_sizes("condition", batch_size)["n"]
        window = random_window(transformer, batch_size, past, count)
        ours = graph_decode(exported, threads, window)
        eager, official = (eager_decode(transformer, window, ahead) for ahead in (count, 1))
        wanted = official().numpy()
        rms = np.sqrt(np.mean(np.square(wanted)))
        error = max(float(np.abs(f - wanted).max() / rms) for f in (ours(), eager().numpy()))
        click.echo(f"logits differ by {error:.1e}; timing", err=True)
        peers = {OURS: ours, EAGER: eager, OFFICIAL: official}
        times = interleaved(peers, warmup=1, rounds=rounds)
        del ours, eager, official, peers
        generator = Generator.open(exported, threads=threads)
        seconds = profile(generator, [CLASS % config.num_classes] * batch_size, batch_size)
    speed, published = (ratio(times[peer], times[OURS]) for peer in (EAGER, OFFICIAL))
    found = environment(threads)
    table = [(n, f"{t.p50_ms / count:.1f}", f"{t.min_ms / count:.1f}") for n, t in times.items()]
    text = "\n\n".join(
        (
            f"# Decoding with RAR-{size.upper()}: {batch_size} image(s) at once with guidance, "
            f"{past} tokens and more in the cache, FP32, {weights_of(find_model(model))}",
            environment_line(found),
            markdown_table(("one token", "median ms", "least ms"), table),
            f"{speed.ratio:.2f}x as fast as eager PyTorch with the same caching ({speed.low:.2f} "
            f"to {speed.high:.2f}, {speed.verdict}, {rounds} rounds of {count} tokens), "
            f"{published.ratio:.2f}x ({published.low:.2f} to {published.high:.2f}) as fast as the "
            f"official way; logits differ by {error:.1e} of their RMS at most.",
            f"An image of {config.length} tokens:",
            profile_table(seconds),
        )
    )
    values = {
        "environment": found,
        "batch_size": batch_size,
        "past": past,
        "tokens_a_round": count,
        "latency": {name: msgspec.to_builtins(t) for name, t in times.items()},
        "speed": msgspec.to_builtins(speed),
        "speed_official_way": msgspec.to_builtins(published),
        "logits_differ": error,
        "profile_seconds": seconds,
    }
    write_results(f"generate_rar_{size}", out, text + "\n", values)
    click.echo(text)


if __name__ == "__main__":
    main()
