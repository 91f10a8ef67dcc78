"""Compare a tool's graphs of a tokenizer with FP32, as ONNX Runtime executes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...errors import BundleError
from ...numerics.noise import SignalAndNoise
from ...runtime.sessions.open import fast_session, open_session, reference_session
from ...runtime.sessions.session import Session
from ..common import Measured
from .report import Accuracy

GRAPHS = ("encoder", "decoder")
REFERENCE, EXECUTED = "reference", "as executed"
Images = Sequence[NDArray[np.float32]]
Outputs = list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]


@dataclass(slots=True)
class Candidate:
    """Hold one quantization: graphs as written (`qdq`), and those executed, with their options."""

    label: str
    version: str
    qdq: Path
    executed: Path
    ours: bool = False
    cost: dict[str, Measured] = field(default_factory=dict)

    def codec(self, *, reference: bool, threads: int = 0) -> Codec:
        if reference:
            return Codec(*(reference_session(self.qdq / f"{g}.onnx", threads) for g in GRAPHS))
        if self.ours:
            return Codec(*(fast_session(self.executed / f"{g}.onnx", threads) for g in GRAPHS))
        return Codec(
            *(
                open_session(self.executed / f"{g}.onnx", optimized=True, threads=threads)
                for g in GRAPHS
            )
        )


@dataclass(frozen=True, slots=True)
class Codec:
    """Run both halves of a discrete tokenizer, whatever tool wrote the graphs."""

    encoder: Session
    decoder: Session

    def encode(self, image: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        outputs = self.encoder.run({"image": image})
        return outputs["indices"], outputs["latent"]

    def decode(self, tokens: NDArray[Any]) -> NDArray[Any]:
        return self.decoder.run({"indices": tokens})["image"]


def quantized_convolutions(folder: Path) -> str:
    """Count convolutions with INT8 input and weight, all, and those with an INT8 weight alone.

    INT8 is what comes from a DequantizeLinear.
    """
    both = weight_only = total = 0
    for graph in GRAPHS:
        for node in ir.load(folder / f"{graph}.onnx").graph:
            if node.op_type != "Conv":
                continue
            makers = [v.producer() for v in node.inputs[:2] if v is not None]
            value, weight = (m is not None and m.op_type == "DequantizeLinear" for m in makers)
            total += 1
            both += value and weight
            weight_only += weight and not value
    rest = f", {weight_only} weight-only" if weight_only else ""
    return f"{both} of {total}{rest}"


def fp32_outputs(codec: Codec, images: Images) -> Outputs:
    found = []
    for image in images:
        tokens, latent = codec.encode(image)
        found.append((tokens, latent, codec.decode(tokens)))
    return found


def accuracy(codec: Codec, images: Images, expected: Outputs) -> Accuracy:
    latents, pictures = SignalAndNoise(), SignalAndNoise()
    equal = []
    for image, (tokens, latent, picture) in zip(images, expected, strict=True):
        found_tokens, found_latent = codec.encode(image)
        latents.add(latent, found_latent)
        equal.append(found_tokens == tokens)
        pictures.add(picture, codec.decode(tokens))
    return Accuracy(latents.decibels(), float(np.mean(equal)), pictures.decibels())


def both_accuracies(
    candidate: Candidate, images: Images, expected: Outputs
) -> dict[str, Accuracy | None]:
    """Return accuracy by session; None where ONNX Runtime refuses what the tool wrote."""
    click.echo(f"accuracy of {candidate.label}", err=True)
    found: dict[str, Accuracy | None] = {}
    for kind, reference in ((REFERENCE, True), (EXECUTED, False)):
        try:
            codec = candidate.codec(reference=reference)
        except BundleError as error:
            click.echo(f"{candidate.label}, {kind}: {error.what}", err=True)
            found[kind] = None
            continue
        found[kind] = accuracy(codec, images, expected)
    return found
