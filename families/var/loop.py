"""Run VAR's schedule: one token map a scale, coarse to fine, each a step over the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.images import FloatImage
from ...runtime.loop import Batch, CachedSteps, OpenSession, choose, open_graphs, require_finite
from ...runtime.sampling import Sampling, Tokens
from .spec import VarSpec


class VarLoop:
    """Hold the graphs of a VAR and run the loop over its scales.

    All that the graphs hand to each other stays in the session's memory: of each step only logits
    come out, and only tokens go in.
    """

    def __init__(self, folder: Path, spec: VarSpec, session: OpenSession, threads: int) -> None:
        """Open the graphs of an export folder.

        Raises:
            BundleError: a graph is missing, does not load, or has other caches than `spec` says.
        """
        updates = [f"update.{k}" for k in range(spec.steps)]
        names = ("condition", *spec.step_graphs, *updates, "decoder")
        graphs = open_graphs(folder, names, session, threads)
        self.spec = spec
        self._condition, self._decoder = graphs["condition"], graphs["decoder"]
        self._steps = CachedSteps([graphs[name] for name in spec.step_graphs], spec)
        self._updates = [graphs[name] for name in updates]

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Tokens]:
        """Generate images and tokens; guidance rises from 0 at the first scale to cfg."""
        spec, steps = self.spec, self._steps
        batch = Batch(labels, spec.num_classes, sampling, spec.static_batch)
        condition = self._condition.run_on_device({"labels": batch.labels})
        x = condition.pop("x")
        steps.start(batch.rows)
        latent = (batch.rows, spec.latent_channels, spec.latent_size, spec.latent_size)
        f_hat = steps.to_device(np.zeros(latent, np.float32))
        tokens = []
        for scale, update in enumerate(self._updates):
            side = spec.patch_nums[scale]
            logits = batch.split_rows(steps.run(batch.rows, side * side, {"x": x, **condition}))
            require_finite(logits, f"scale {scale} ({side}x{side} tokens)", steps.path)
            strength = sampling.cfg * scale / max(spec.steps - 1, 1)
            tokens.append(choose(logits, strength, streams, sampling))
            # All rows at once, as the next input has them.
            outputs = update.run_on_device({"tokens": batch.fill_rows(tokens[-1]), "f_hat": f_hat})
            f_hat = outputs["f_hat_next"]
            x = outputs.get("x", x)
            tick()
        image = self._decoder.run({"latent": f_hat.numpy()[: batch.images]})["image"]
        return image[: batch.count], np.concatenate(tokens, axis=1)  # type: ignore[return-value]
