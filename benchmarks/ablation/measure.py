"""Measure how far quantized logits and sites are from FP32 ones, for a step of the ablation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ...graph.sites import Site
from ...numerics.noise import SignalAndNoise
from ...runtime.generator import TEACHER_FORCED, Generated, Generator
from ...runtime.sessions.open import open_session
from ...samples.files import load_sample, sample_batches, sample_files
from ...validate.metrics.logits import log_softmax

Feeds = Mapping[str, NDArray[np.generic]]
Model = Callable[[Feeds], Mapping[str, NDArray[np.generic]]]


@dataclass(frozen=True, slots=True)
class Distance:
    """Hold KL in nats a token, the share of equal likeliest tokens, SQNR in dB.

    `tied` is the share of tokens whose two likeliest logits are closer in FP32 than the root mean
    square of the error: what of the agreement is decided by a coin.
    """

    kl: float
    top1: float
    logits_db: float
    sites_db: Mapping[str, float]
    tied: float


def comparable(sites: Sequence[Site]) -> list[str]:
    """Return outputs that no fold changes, so that both graphs mean the same by them."""
    chosen = [site for site in sites if site.weight is not None and site.excluded is None]
    parts = [p for s in chosen if s.producer_fold for p in s.producer_fold.divide]
    changed = {part.initializer for part in parts}
    return [s.output for s in chosen if s.weight not in changed and s.output != "logits"]


def site_cells(sites_db: Mapping[str, float]) -> tuple[str, str]:
    """Return the cells of the least and the median site, in dB; empty if none was measured."""
    sites = np.array(list(sites_db.values()))
    return (f"{sites.min():.1f}", f"{np.median(sites):.1f}") if sites.size else ("", "")


def setbacks(measure: str, unit: str, steps: Sequence[tuple[str, str, float, str]]) -> list[str]:
    """Return the steps that err more than the one before, from (format, step, error, value)."""
    return [
        f"{name}: {step} does not help over {before} ({measure} {value} after {was} {unit})."
        for (of, before, then, was), (name, step, now, value) in pairwise(steps)
        if of == name and now > then
    ]


def generated(folder: Path, count: int, seed: int) -> Generated:
    """Generate images of the first classes in turn."""
    generator = Generator.open(folder)
    labels = np.arange(count) % generator.spec.num_classes
    return generator.generate(labels, seed=seed)


def graph_model(folder: Path, tensors: Sequence[str] = ()) -> Model:
    """Open a full graph in the reference session, with tensors inside it as outputs too."""
    path = folder / f"{TEACHER_FORCED}.onnx"
    graph = onnx.load(path, load_external_data=False)
    for name in dict.fromkeys(tensors):
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = open_session(path, optimized=False, graph=graph.SerializeToString())
    return lambda feeds: session.run(feeds, ["logits", *tensors])


def measure(
    reference: Model, candidate: Model, samples: Path, batch: int, tensors: Sequence[str] = ()
) -> Distance:
    """Measure `candidate` against `reference` over the saved samples, `batch` at a time."""
    energies: dict[str, SignalAndNoise] = defaultdict(SignalAndNoise)
    divergence, agreed, gaps = 0.0, 0, []
    files = sample_files(samples)
    for _, feeds in sample_batches(files, batch, load_sample(files[0])):
        wanted, found = (
            {k: v.astype(np.float64) for k, v in run(feeds).items()}
            for run in (reference, candidate)
        )
        p, q = (log_softmax(v["logits"]) for v in (wanted, found))
        divergence += float(np.sum(np.exp(p) * (p - q)))
        agreed += int(np.count_nonzero(p.argmax(axis=-1) == q.argmax(axis=-1)))
        best = np.partition(p, -2, axis=-1)[..., -2:]
        gaps.append((best[..., 1] - best[..., 0]).ravel())
        for name in ("logits", *tensors):
            # A constant added to all logits of a token has no effect.
            pair = [v[name] for v in (wanted, found)]
            shown = [v - v.mean(axis=-1, keepdims=True) for v in pair] if name == "logits" else pair
            energies[name].add(*shown)
    margins = np.concatenate(gaps)
    logits = energies.pop("logits")
    error = np.sqrt(logits.noise / (margins.size * p.shape[-1]))
    return Distance(
        divergence / margins.size,
        agreed / margins.size,
        logits.decibels(),
        {name: energy.decibels() for name, energy in energies.items()},
        float((margins < error).mean()),
    )
