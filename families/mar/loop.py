"""Run MAR's schedule: each pass makes the next tokens of a random order, by diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.images import FloatImage
from ...runtime.loop import Latents, OpenSession, open_graphs, require_finite
from ...runtime.sampling import Sampling
from .diffusion import Array as Doubles
from .diffusion import Diffusion
from .spec import MarSpec

Floats = NDArray[np.float32]
Streams = Sequence[np.random.Generator]


class MarLoop:
    """Hold the graphs of a MAR and run the loop over its passes.

    Rows 0..B-1 of the transformers are conditional; with guidance rows B..2B-1 have the null
    class. An image's stream gives its order, then, for each pass, the noise that its next tokens
    begin with and what each step of their diffusion adds.
    """

    def __init__(self, folder: Path, spec: MarSpec, session: OpenSession, threads: int) -> None:
        """Open the graphs of an export folder.

        Raises:
            BundleError: a graph is missing or does not load.
        """
        graphs = open_graphs(folder, ("pass", "denoise", "decoder"), session, threads)
        self.spec = spec
        self._pass, self._denoiser = graphs["pass"], graphs["denoise"]
        self._decoder = graphs["decoder"]

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Streams,
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Latents]:
        """Generate images and latents [B, c, h, w]; guidance is as `strength` says.

        Greedy adds no noise on the way of a diffusion: order and first noise are still drawn.
        """
        spec, own, count = self.spec, self.spec.defaults, len(labels)
        diffusion = Diffusion.of(sampling.diffusion_steps or own.diffusion_steps)
        guided = sampling.cfg not in (0, 1)
        rows = np.concatenate([labels, np.full_like(labels, spec.num_classes)][: 1 + guided])
        # The official order is one of masking: its end is revealed first.
        order = np.stack([stream.permutation(spec.length)[::-1] for stream in streams])
        position_ids = np.concatenate([order] * (1 + guided))
        tokens = np.zeros((count, 0, spec.latent_channels), np.float32)
        masked = spec.length
        for k, left in enumerate(masked_counts(sampling.iterations or own.iterations, spec.length)):
            known = np.concatenate([tokens] * (1 + guided))
            feeds = {"labels": rows, "tokens": known, "position_ids": position_ids}
            condition = self._pass.run(feeds, ["condition"])["condition"][:, : masked - left]
            # At the end one token counts as unknown, as in the official code.
            scale = strength(sampling, max(left, 1), spec.length) if guided else None
            new = self._denoise(condition, streams, sampling, diffusion, scale, k)
            tokens, masked = np.concatenate([tokens, new], axis=1), left
            tick()
        raster = np.empty_like(tokens)
        np.put_along_axis(raster, order[..., None], tokens, axis=1)
        latent = raster.transpose(0, 2, 1).reshape(count, -1, spec.side, spec.side)
        return self._decoder.run({"latent": latent})["image"], latent  # type: ignore[return-value]

    def _denoise(
        self,
        condition: NDArray[np.generic],
        streams: Streams,
        sampling: Sampling,
        diffusion: Diffusion,
        scale: float | None,
        number: int,
    ) -> Floats:
        """Return the next tokens of each image, [B, n, c], for condition [rows, n, W].

        With guidance by `scale` the two rows of an image share its x, and the noise predicted in
        it is guided; where its variance lies the conditional row alone says.
        """
        count, n, channels = len(streams), condition.shape[1], self.spec.latent_channels
        condition = np.ascontiguousarray(condition.reshape(-1, condition.shape[2]))
        x = draw(streams, n, channels)
        for step in reversed(range(len(diffusion.times))):
            fed = x.reshape(-1, channels).astype(np.float32)
            feeds = {
                "x": fed if scale is None else np.concatenate([fed, fed]),
                "time": diffusion.times[step : step + 1],
                "condition": condition,
            }
            outputs = self._denoiser.run(feeds)
            noises, spreads = (
                outputs[name].reshape(-1, count, n, channels).astype(np.float64)
                for name in ("noise", "spread")
            )
            what = f"of pass {number} at time {diffusion.times[step]}"
            require_finite([*noises, *spreads], what, self._denoiser.path, "predictions")
            noise = noises[0]
            if scale is not None:
                noise = noises[1] + scale * (noises[0] - noises[1])
            still = step == 0 or sampling.greedy
            drawn = np.zeros_like(x) if still else draw(streams, n, channels)
            x = diffusion.back(step, x, noise, spreads[0], sampling.temperature * drawn)
        return x.astype(np.float32)


def draw(streams: Streams, n: int, channels: int) -> Doubles:
    """Draw the next n * channels normal numbers of each stream, [B, n, c]."""
    return np.stack([stream.standard_normal((n, channels)) for stream in streams])


def masked_counts(iterations: int, length: int) -> list[int]:
    """Return how many tokens are unknown after each pass: floor(L cos(pi/2 (k + 1) / passes)).

    Every pass makes at least one known, all but the last leave at least one.
    """
    counts, left = [], length
    for k in range(iterations - 1):
        ratio = np.cos(np.pi / 2.0 * (k + 1) / iterations)
        left = max(1, min(left - 1, int(np.floor(length * ratio))))
        counts.append(left)
    return [*counts, 0]


def strength(sampling: Sampling, masked: int, length: int) -> float:
    """Return 1 + (cfg - 1) (known / L)^p: p = 1 is the official linear schedule, 0 a constant."""
    power = 1.0 if sampling.cfg_power is None else sampling.cfg_power
    return 1 + (sampling.cfg - 1) * float(((length - masked) / length) ** power)
