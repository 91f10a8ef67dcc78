"""Time our generator beside an eager PyTorch loop with the same caching, at VAR's real shapes.

python -m arvg_trt.benchmarks.generate --model var-d16 --threads 2

Both run FP32 on the CPU in one process, interleaved: an image a label from the condition to the
decoder's pixels, with the published sampling. Weights of published sizes are random, which changes
no shape. Greedy tokens of both are compared first. A profile tells what the loop costs outside the
graphs.
"""

from __future__ import annotations

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, cast

import click
import msgspec
import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import Tensor

from ...api import Workspace
from ...families.var.model import VarTransformer
from ...families.var_vqvae.model import VarVqvae, load_var_vqvae
from ...families.variants import find_model
from ...runtime.generator import Generator
from ...runtime.spec import Defaults
from ...validate.metrics.latency import interleaved, ratio
from ..common import RESULTS, environment, environment_line, markdown_table, write_results
from ..random_checkpoint import checkpoint_of, load_transformer, read_tensors, weights_of

OURS, EAGER = "ONNX Runtime generator", "eager PyTorch"
# Functions that the profile lists separately; all of them run outside the graphs.
PARTS = ("guide", "exponential_noise", "sample", "require_finite", "from_model")
GRAPH_RUNS = ("run", "run_with_iobinding")
MOST = 0.03
IMAGES = "skimage:coffee"  # that an export compares ONNX Runtime with PyTorch on


@dataclass(frozen=True)
class EagerLoop:
    """Run the published loop over our modules, in torch alone."""

    transformer: VarTransformer
    vae: VarVqvae
    cfg: float
    top_k: int
    top_p: float

    @torch.inference_mode()
    def generate(self, labels: Sequence[int], *, greedy: bool = False) -> tuple[Tensor, Tensor]:
        """Return images uint8 [B, H, W, 3] and tokens [B, L]."""
        f_hat, tokens = self.tokens(labels, greedy=greedy)
        image = self.vae.decode(f_hat).clamp(-1, 1).add(1).mul(127.5).round()
        return image.to(torch.uint8).permute(0, 2, 3, 1).contiguous(), tokens

    @torch.inference_mode()
    def tokens(self, labels: Sequence[int], *, greedy: bool = False) -> tuple[Tensor, Tensor]:
        """Return what the decoder takes, and tokens [B, L]."""
        model, quantizer = self.transformer, self.vae.quantize
        config, count = model.config, len(labels)
        rows = torch.tensor([*labels, *[config.num_classes] * count])
        x, modulation, head_modulation = model.condition(rows)
        positions = model.positions()
        side = config.patch_nums[-1]
        f_hat = torch.zeros(count, config.latent_channels, side, side)
        past, chosen, last = None, [], len(config.patch_nums) - 1
        for scale, (first, end) in enumerate(zip(config.bounds, config.bounds[1:], strict=False)):
            logits, past = model.step(x, positions[first:end], modulation, head_modulation, past)
            t = self.cfg * scale / last
            logits = (1 + t) * logits[:count] - t * logits[count:]
            tokens = logits.argmax(dim=-1) if greedy else self.draw(logits)
            chosen.append(tokens)
            f_hat = f_hat + quantizer.contribution(scale, tokens)
            if scale < last:
                x = model.word_embed(quantizer.shrink(scale + 1, f_hat)).repeat(2, 1, 1)
        return f_hat, torch.cat(chosen, dim=1)

    def draw(self, logits: Tensor) -> Tensor:
        """Draw one token a row after top-k and top-p, [B, n, V] -> [B, n]."""
        kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
        ascending, order = logits.sort(dim=-1)
        gone = F.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        gone[..., -1] = False
        logits = logits.masked_fill(gone.scatter(-1, order, gone), -torch.inf)
        p = F.softmax(logits, dim=-1)
        return torch.multinomial(p.flatten(0, 1), 1).reshape(p.shape[:2])


def eager_loop(checkpoint: Path, model: str, defaults: Defaults) -> EagerLoop:
    """Return the published loop over a checkpoint's own weights, with a generator's sampling."""
    entry = find_model(model)
    transformer = cast(VarTransformer, load_transformer(checkpoint, entry))
    path = checkpoint / entry.files[0][1]
    vae = load_var_vqvae(read_tensors(path), path.name, transformer.config.patch_nums)
    return EagerLoop(
        transformer,
        vae.eval().requires_grad_(False),
        defaults.cfg,
        defaults.top_k,
        defaults.top_p,
    )


def export(model: str, folder: Path) -> tuple[Path, Path]:
    """Export a model in `folder`; return the folders of its checkpoint and of its graphs."""
    checkpoint = checkpoint_of(find_model(model), folder / "checkpoint")
    exported = Workspace(folder / "ws").export(model, checkpoint, images=IMAGES)
    return checkpoint, exported.folder


def profile(generator: Generator, labels: Sequence[int], batch_size: int) -> dict[str, float]:
    """Return seconds of one call, in all and in graphs, and of another in each of `PARTS`.

    A profiler slows each call of Python, which is most of what runs outside the graphs: the whole
    and the graphs are timed without it.
    """
    with timed_graphs() as runs:
        start = time.perf_counter()
        generator.generate(labels, batch_size=batch_size)
        total = time.perf_counter() - start
    seconds = {"total": total, "graphs": sum(runs), **dict.fromkeys(PARTS, 0.0)}
    profiler = cProfile.Profile()
    profiler.enable()
    generator.generate(labels, batch_size=batch_size)
    profiler.disable()
    stats: Any = pstats.Stats(profiler)
    for (file, _, name), (_, _, _, cumulative, _) in stats.stats.items():
        if "arvg_trt" in file and name in PARTS:
            seconds[name] += cumulative
    return seconds


@contextmanager
def timed_graphs() -> Iterator[list[float]]:
    """Collect the seconds of every run of a graph in the block, in any session."""
    seconds: list[float] = []

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def measured(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = run(*args, **options)
            seconds.append(time.perf_counter() - start)
            return result

        return measured

    plain = {name: getattr(ort.InferenceSession, name) for name in GRAPH_RUNS}
    for name, run in plain.items():
        setattr(ort.InferenceSession, name, timed(run))
    try:
        yield seconds
    finally:
        for name, run in plain.items():
            setattr(ort.InferenceSession, name, run)


def profile_table(seconds: dict[str, float]) -> str:
    def row(label: str, value: float) -> tuple[str, str, str]:
        return label, f"{value * 1000:.1f}", f"{value / seconds['total']:.2%}"

    outside = seconds["total"] - seconds["graphs"]
    rest = outside - sum(seconds[name] for name in PARTS)
    return markdown_table(
        ("part", "ms", "of the time"),
        [
            row("graphs", seconds["graphs"]),
            row(f"outside the graphs (at most {MOST:.0%})", outside),
            *(row(f"- `{name}`", seconds[name]) for name in PARTS),
            row("- the rest", rest),
        ],
    )


@click.command()
@click.option("--model", default="var-d16", show_default=True)
@click.option("--batch-size", default=1, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--workdir", type=click.Path(path_type=Path), help="For temporary files.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    model: str, batch_size: int, threads: int, rounds: int, workdir: Path | None, out: Path
) -> None:
    """Measure and write `generate_SIZE.md` and `.json`."""
    torch.set_num_threads(threads)
    size = model.removeprefix("var-")
    with tempfile.TemporaryDirectory(dir=workdir) as scratch:
        click.echo("exporting", err=True)
        checkpoint, exported = export(model, Path(scratch))
        generator = Generator.open(exported, threads=threads)
        eager = eager_loop(checkpoint, model, generator.spec.defaults)
        labels = [207 % generator.spec.num_classes] * batch_size
        click.echo("comparing", err=True)
        ours = generator.generate(labels, greedy=True, batch_size=batch_size)
        _, wanted = eager.generate(labels, greedy=True)
        equal = float(np.mean(ours.tokens == wanted.numpy()))
        click.echo(f"{equal:.2%} of greedy tokens equal; timing", err=True)
        times = interleaved(
            {
                OURS: lambda: generator.generate(labels, batch_size=batch_size),
                EAGER: lambda: eager.generate(labels),
            },
            warmup=1,
            rounds=rounds,
        )
        seconds = profile(generator, labels, batch_size)
    speed = ratio(times[EAGER], times[OURS])
    found = environment(threads)
    rows = [(name, f"{t.p50_ms:.0f}", f"{t.min_ms:.0f}") for name, t in times.items()]
    text = "\n\n".join(
        (
            f"# Generating with VAR {size}: {batch_size} image(s) at once, FP32, "
            f"{weights_of(find_model(model))}",
            environment_line(found),
            markdown_table(("loop", "median ms", "least ms"), rows),
            f"{speed.ratio:.2f}x as fast as the eager loop ({speed.low:.2f} to {speed.high:.2f}, "
            f"{speed.verdict}, {rounds} rounds); {equal:.2%} of greedy tokens equal.",
            profile_table(seconds),
        )
    )
    values = {
        "environment": found,
        "batch_size": batch_size,
        "latency": {name: msgspec.to_builtins(t) for name, t in times.items()},
        "speed": msgspec.to_builtins(speed),
        "greedy_tokens_equal": equal,
        "profile_seconds": seconds,
    }
    write_results(f"generate_{size}", out, text + "\n", values)
    click.echo(text)
