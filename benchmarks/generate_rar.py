"""RAR's one-token decode beside eager PyTorch with the same caching, at real width.

python -m arvg_trt.benchmarks.generate_rar --size b --threads 2

Both run FP32 on the CPU in one process, interleaved: as many single-token steps, from the same
cache and with the same tokens, as one run of condition.onnx is good for, which is timed with them.
Eager PyTorch runs twice: with the same caching, all of those positions modulated at once, and
modulating in every step, as the official code does. Weights are random, which changes no shape.
Logits of all are compared first. A profile tells what the loop costs outside the graphs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec
import numpy as np
import torch
from torch import Tensor

from ..export.weight_file import WeightFile
from ..families.maskgit_vq.config import MaskgitVqConfig
from ..families.maskgit_vq.model import MaskgitVq
from ..families.rar.config import PUBLISHED, RarConfig
from ..families.rar.export import generator_spec
from ..families.rar.loop import Modulations
from ..families.rar.model import RarTransformer
from ..families.rar.spec import ROWS_AHEAD
from ..families.rar.write import condition_graph, step_graph
from ..families.shared.transformer import KeyValue
from ..families.shared.vq_export import decoder_graph
from ..families.shared.vq_graphs import vq_graphs
from ..runtime.generator import Generator
from ..runtime.kv_cache import KvCache
from ..runtime.sessions.onnxruntime import fast_session
from ..validate.metrics.latency import interleaved, ratio
from ..workspace.files import encode_json
from .common import RESULTS, environment, environment_line, markdown_table, write_results
from .generate import profile, profile_table

OURS = "ONNX Runtime step"
EAGER = "eager PyTorch step, the same caching"
OFFICIAL = "eager PyTorch step that modulates, as the official code"


@dataclass(frozen=True)
class Window:
    """Labels of all rows, and the sequence [rows, P + n], of which n tokens are decoded."""

    config: RarConfig
    labels: Tensor
    sequence: Tensor
    past: int

    @property
    def positions(self) -> range:
        return range(self.past, self.sequence.shape[1])


@torch.inference_mode()
def eager_decode(model: RarTransformer, window: Window, ahead: int) -> Callable[[], Tensor]:
    """A run over the window's positions, from a cache that is made here.

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


def graph_decode(folder: Path, threads: int, window: Window) -> Callable[[], np.ndarray]:
    """The same with the graphs."""
    condition, step = (
        fast_session(folder / f"{name}.onnx", threads) for name in ("condition", "step")
    )
    config, labels, sequence = window.config, window.labels.numpy(), window.sequence.numpy()
    rows = len(labels)

    def run(cache: KvCache, modulations: Modulations, n: int) -> tuple[np.ndarray, KvCache]:
        first = cache.length
        outputs = step.run_on_device(
            {
                "tokens": sequence[:, first : first + n],
                "position_ids": np.arange(first, first + n),
                **modulations.of(first, n),
                **cache.feeds(rows),
            }
        )
        return outputs["logits"].numpy(), cache.after(outputs, n)

    def modulations() -> Modulations:
        return Modulations(condition, labels, config.positions)

    nothing = np.zeros((rows, config.heads, 0, config.head_dim), np.float32)
    empty = KvCache.empty(step, nothing)
    _, start = run(empty, modulations(), window.past)

    def decode() -> np.ndarray:
        cache, ahead = start, modulations()
        for _ in window.positions:
            logits, cache = run(cache, ahead, 1)
        return logits

    return decode


def random_models(size: str) -> tuple[RarTransformer, MaskgitVq]:
    """The published configuration; the modulation is not zero, as it is before training."""
    torch.manual_seed(0)
    model = RarTransformer(PUBLISHED[size][0]).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "adaLN" in name and parameter.ndim == 2:
            parameter.normal_(std=0.5 / parameter.shape[1] ** 0.5)
    return model, MaskgitVq(MaskgitVqConfig()).eval().requires_grad_(False)


def export(model: RarTransformer, tokenizer: MaskgitVq, folder: Path) -> None:
    """Write the graphs that a generator opens."""
    with WeightFile(folder) as weights:
        weights.save(condition_graph(model), "condition", {})
        weights.save(step_graph(model), "step", {})
        weights.save(decoder_graph(vq_graphs(tokenizer)), "decoder", {})
    (folder / "generator.json").write_bytes(
        encode_json(generator_spec(model.config, tokenizer.config))
    )


@click.command()
@click.option("--size", type=click.Choice(list(PUBLISHED)), default="b", show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--past", default=128, show_default=True, help="Tokens in the cache at first.")
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(size: str, batch_size: int, past: int, threads: int, rounds: int, out: Path) -> None:
    """Measure and write `generate_rar_{SIZE}.md` and `.json`."""
    torch.set_num_threads(threads)
    model, tokenizer = random_models(size)
    config, rows = model.config, 2 * batch_size
    labels = torch.tensor([207, config.num_classes]).repeat_interleave(batch_size)
    count = max(1, ROWS_AHEAD // rows)
    tokens = torch.randint(config.vocab_size, (rows, past + count - 2))
    window = Window(config, labels, torch.cat((model.prefix(labels), tokens), dim=1), past)
    with tempfile.TemporaryDirectory() as scratch:
        click.echo("exporting", err=True)
        export(model, tokenizer, Path(scratch))
        ours = graph_decode(Path(scratch), threads, window)
        eager, official = (eager_decode(model, window, ahead) for ahead in (count, 1))
        wanted = official().numpy()
        rms = np.sqrt(np.mean(np.square(wanted)))
        error = max(float(np.abs(f - wanted).max() / rms) for f in (ours(), eager().numpy()))
        click.echo(f"logits differ by {error:.1e}; timing", err=True)
        peers = {OURS: ours, EAGER: eager, OFFICIAL: official}
        times = interleaved(peers, warmup=1, rounds=rounds)
        del ours, eager, official, peers
        generator = Generator.open(scratch, threads=threads, verify=False)
        seconds = profile(generator, [207] * batch_size, batch_size)
    speed, published = (ratio(times[peer], times[OURS]) for peer in (EAGER, OFFICIAL))
    found = environment(threads)
    table = [(n, f"{t.p50_ms / count:.1f}", f"{t.min_ms / count:.1f}") for n, t in times.items()]
    text = "\n\n".join(
        (
            f"# Decoding with RAR-{size.upper()}: {batch_size} image(s) at once with guidance, "
            f"{past} tokens and more in the cache, FP32, random weights",
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
