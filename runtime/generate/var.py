"""VAR's schedule: one token map a scale, coarse to fine, each scale a step over the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..images import FloatImage
from ..sampling import Sampling, Tokens
from .frame import (
    CachedStep,
    Count,
    Defaults,
    OpenSession,
    choose,
    guided_rows,
    open_graphs,
    require_finite,
)


class VarSpec(msgspec.Struct, frozen=True, kw_only=True, tag_field="family", tag="var"):
    """`generator.json` of a VAR: what the schedule needs to know beside the graphs.

    `patch_nums` are the sides of the token maps, coarse to fine; the latent is [latent_channels,
    latent_size, latent_size]. The null class is `num_classes`.
    """

    schema: Literal["arvg-trt/generator/v1"]
    patch_nums: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1)]
    num_classes: Count
    vocab_size: Count
    depth: Count
    width: Count
    heads: Count
    head_dim: Count
    latent_channels: Count
    latent_size: Count
    image_size: Count
    defaults: Defaults

    @property
    def steps(self) -> int:
        """Steps of one batch: its scales."""
        return len(self.patch_nums)

    @property
    def length(self) -> int:
        """Tokens of an image over all scales."""
        return sum(side * side for side in self.patch_nums)


class VarLoop:
    """The graphs of a VAR and the loop over its scales.

    Rows 0..B-1 of the transformer are conditional; with guidance rows B..2B-1 have the null
    class. All that the graphs hand to each other stays in the session's memory: of each step the
    logits come out, and the tokens go in.
    """

    def __init__(self, folder: Path, spec: VarSpec, session: OpenSession, threads: int) -> None:
        """Open the graphs of an export folder.

        Raises:
            BundleError: a graph is missing, does not load, or has other caches than `spec` says.
        """
        updates = [f"update.{k}" for k in range(spec.steps)]
        names = ("condition", "step", *updates, "decoder")
        graphs = open_graphs(folder, names, session, threads)
        self.spec = spec
        self._condition, self._decoder = graphs["condition"], graphs["decoder"]
        self._step = CachedStep(graphs["step"], spec.depth, spec.heads, spec.head_dim)
        self._updates = [graphs[name] for name in updates]

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Tokens]:
        """As `Loop.run`; guidance rises from 0 at the first scale to cfg at the last."""
        spec, count, step = self.spec, len(labels), self._step
        classes = guided_rows(labels, spec.num_classes, sampling)
        rows = len(classes)
        condition = self._condition.run_on_device({"labels": classes})
        x = condition.pop("x")
        step.start(rows)
        latent = (rows, spec.latent_channels, spec.latent_size, spec.latent_size)
        f_hat = step.session.place(np.zeros(latent, np.float32))
        chosen = []
        for scale, update in enumerate(self._updates):
            side = spec.patch_nums[scale]
            logits = step.run(rows, side * side, {"x": x, **condition})
            what = f"scale {scale} ({side}x{side} tokens)"
            require_finite(logits, count, what, step.session.path)
            strength = sampling.cfg * scale / max(spec.steps - 1, 1)
            tokens = choose(logits, count, strength, streams, sampling)
            chosen.append(tokens)
            # Both halves get the same tokens, so that the next input has all rows at once.
            fed = np.tile(tokens, (rows // count, 1))
            outputs = update.run_on_device({"tokens": fed, "f_hat": f_hat})
            f_hat = outputs["f_hat_next"]
            x = outputs.get("x", x)
            tick()
        image = self._decoder.run({"latent": f_hat.numpy()[:count]})["image"]
        return image, np.concatenate(chosen, axis=1)  # type: ignore[return-value]
