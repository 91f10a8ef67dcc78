"""VAR's schedule: one token map a scale, coarse to fine, each scale a step over the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, GenerationError
from ..images import FloatImage
from ..kv_cache import KvCache, require_caches
from ..sampling import Logits, Sampling, Tokens, exponential_noise, guide, sample
from ..sessions.onnxruntime import DeviceValue, OnnxRuntimeSession
from .var_spec import VarSpec

OpenSession = Callable[[Path, int], OnnxRuntimeSession]


class VarLoop:
    """The graphs of a VAR and the loop over its scales.

    Rows 0..B-1 of the transformer are conditional; with guidance rows B..2B-1 have the null
    class. Static graphs always have all rows: missing images are filled up, and their tokens are
    not used. All that the graphs hand to each other stays in the session's memory: of each step the
    logits come out, and the tokens go in.
    """

    def __init__(self, folder: Path, spec: VarSpec, session: OpenSession, threads: int) -> None:
        """Open the graphs of an export folder.

        Raises:
            BundleError: a graph is missing, does not load, or has other caches than `spec` says.
        """
        updates = [f"update.{k}" for k in range(spec.steps)]
        paths = {
            name: folder / f"{name}.onnx"
            for name in ("condition", *spec.step_graphs, *updates, "decoder")
        }
        absent = [path.name for path in paths.values() if not path.is_file()]
        if absent:
            raise BundleError(
                f"{', '.join(absent)} missing", where=str(folder), do="export the model again"
            )
        self.spec = spec
        self._condition = session(paths["condition"], threads)
        self._steps = [session(paths[name], threads) for name in spec.step_graphs]
        for scale, step in enumerate(self._steps):
            first = scale == 0 and spec.static_batch is not None
            require_caches(step, spec.depth, spec.kv_type, first=first)
        self._updates = [session(paths[name], threads) for name in updates]
        self._decoder = session(paths["decoder"], threads)

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Tokens]:
        """Labels [B] and a stream of noise for each -> images [B, 3, H, W] and tokens [B, L].

        `tick` is called after every step.

        Raises:
            GenerationError: logits that are not finite; the message says at which scale.
        """
        spec, count = self.spec, len(labels)
        half = spec.static_batch or count
        padded = np.concatenate([labels, np.zeros(half - count, labels.dtype)])
        guided = sampling.cfg > 0 or spec.static_batch is not None
        classes = [padded, np.full_like(padded, spec.num_classes)] if guided else [padded]
        rows = half * len(classes)
        condition = self._condition.run_on_device({"labels": np.concatenate(classes)})
        x = condition.pop("x")
        empty = np.zeros((rows, spec.heads, 0, spec.head_dim), spec.kv_type)
        cache = KvCache.empty(self._steps[0], empty)
        latent = (rows, spec.latent_channels, spec.latent_size, spec.latent_size)
        f_hat = self._steps[0].place(np.zeros(latent, np.float32))
        chosen = []
        for scale, update in enumerate(self._updates):
            logits, cache = self._forward(scale, rows, x, condition, cache)
            both = [logits[:count], logits[half : half + count]][: len(classes)]
            tokens = self._choose(scale, both, streams, sampling)
            chosen.append(tokens)
            # Both halves get the same tokens, so that the next input has all rows at once.
            filled = np.pad(tokens, ((0, half - count), (0, 0)))
            fed = np.tile(filled, (len(classes), 1))
            outputs = update.run_on_device({"tokens": fed, "f_hat": f_hat})
            f_hat = outputs["f_hat_next"]
            x = outputs.get("x", x)
            tick()
        image = self._decoder.run({"latent": f_hat.numpy()[:half]})["image"][:count]
        return image, np.concatenate(chosen, axis=1)  # type: ignore[return-value]

    def _forward(
        self,
        scale: int,
        rows: int,
        x: DeviceValue,
        condition: dict[str, DeviceValue],
        cache: KvCache,
    ) -> tuple[Logits, KvCache]:
        """Logits [rows, n, V] of a scale's n tokens, and the cache with them."""
        n = self.spec.patch_nums[scale] ** 2
        positions = np.arange(cache.length, cache.length + n)
        step = self._steps[min(scale, len(self._steps) - 1)]
        outputs = step.run_on_device(
            {"x": x, "position_ids": positions, **condition, **cache.feeds(rows)}
        )
        logits = outputs["logits"].numpy().astype(np.float32, copy=False)
        return logits, cache.after(outputs, n)

    def _choose(
        self,
        scale: int,
        halves: Sequence[Logits],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
    ) -> Tokens:
        """Tokens [B, n] of a scale: guidance rises from 0 at the first scale to cfg at the last.

        `halves` are the conditional logits [B, n, V] and, with guidance, the unconditional ones.
        """
        for half in halves:
            self._require_finite(scale, half)
        logits = halves[0]
        if sampling.cfg > 0:
            strength = sampling.cfg * scale / max(self.spec.steps - 1, 1)
            logits = guide(logits, halves[1], strength)
        count, n, _ = logits.shape
        flat = logits.reshape(count * n, -1)
        if sampling.greedy:
            tokens: Tokens = np.argmax(flat, axis=1)
        else:
            noise = exponential_noise(streams, n, flat.shape[1])
            tokens = sample(flat, noise, sampling.top_k, sampling.top_p)
        return tokens.reshape(count, n)

    def _require_finite(self, scale: int, logits: Logits) -> None:
        finite = np.isfinite(logits)
        if finite.all():
            return
        rows, tokens = np.nonzero(~finite.all(axis=2))
        side = self.spec.patch_nums[scale]
        raise GenerationError(
            f"logits of scale {scale} ({side}x{side} tokens) are not finite, first at token "
            f"{tokens[0]} of image {rows[0]} of the batch",
            where=str(self._steps[min(scale, len(self._steps) - 1)].path),
            do="check the weights; an FP16 graph may overflow",
        )
