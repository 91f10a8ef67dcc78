"""Make the runs of a MAR's graphs along trajectories that lead to a user's images.

The known tokens of a pass are the image's own, in an order that the seed draws, and the denoiser is
given the image's next tokens with as much noise as is left at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ...runtime.generator import choose_sampling
from ...runtime.images import Uint8Image, shrunk_crop, to_model
from ...runtime.recording import Array, GraphRun
from ...runtime.sessions.open import fast_session
from ...runtime.tokenizer import ImageTokenizer
from .diffusion import Diffusion
from .loop import masked_counts
from .recorded_runs import choose_runs
from .spec import PASS, MarSpec

ORDER = 1  # a stream of its own: another decides which runs are recorded


def image_runs(
    export: Path,
    spec: MarSpec,
    load: Callable[[int], Uint8Image],
    labels: Sequence[int],
    *,
    part: range,
    seed: int,
    threads: int = 0,
) -> Iterator[GraphRun]:
    """Yield the runs that `choose_runs` chooses, for each image of `part`, in their order.

    A run of pass.onnx has the row of the image's label, then under guidance that of the null class.
    """
    sampling = choose_sampling(spec)
    assert sampling.iterations is not None and sampling.diffusion_steps is not None
    diffusion, steps = Diffusion.of(sampling.diffusion_steps), sampling.diffusion_steps
    left = masked_counts(sampling.iterations, spec.length)
    ends = [spec.length - count for count in left]
    row_kinds = 1 if sampling.cfg in (0, 1) else 2
    tokenizer = ImageTokenizer.open(export, device="cpu", threads=threads)
    transformer = fast_session(export / f"{PASS}.onnx", threads)

    def rows(values: Array) -> Array:
        return np.concatenate([values] * row_kinds)

    for number in part:
        picture = to_model(shrunk_crop(load(number), spec.image_size))
        _, latent = tokenizer.encode(picture)
        rng = np.random.default_rng([seed, number, ORDER])
        order = rng.permutation(spec.length)
        tokens = latent.reshape(spec.latent_channels, -1).T[order]
        new = tokens[:0]
        condition: Array = np.zeros(0, np.float32)
        for graph, k in choose_runs(seed, number, sampling):
            if graph == PASS:
                known = ends[k - 1] if k else 0
                new = tokens[known : ends[k]]
                feeds: dict[str, Array] = {
                    "labels": np.array([labels[number], spec.num_classes][:row_kinds], np.int64),
                    "tokens": rows(tokens[None, :known]),
                    "position_ids": rows(order[None]),
                }
                made = transformer.run(feeds, ["condition"])["condition"][:, : len(new)]
                condition = made.reshape(-1, made.shape[2])
            else:
                step = steps - 1 - k % steps  # the noisiest comes first
                noise = rng.standard_normal(new.shape)
                share = diffusion.alpha_bar[step]
                x = (np.sqrt(share) * new + np.sqrt(1 - share) * noise).astype(np.float32)
                time = diffusion.times[step : step + 1]
                feeds = {"x": rows(x), "time": time, "condition": condition}
            yield GraphRun(graph, feeds)
