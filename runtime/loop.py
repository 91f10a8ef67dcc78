"""Share what the schedules of all families need: graphs, cached steps, the choice of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError, GenerationError, bounded
from .images import FloatImage
from .kv_cache import KvCache, require_caches
from .sampling import Logits, Sampling, Tokens, exponential_noise, guide, sample
from .sessions.open import has_graph
from .sessions.session import Array, DeviceValue, Session
from .sessions.session import OpenSession as OpenSession
from .spec import KvType

Latents = NDArray[np.float32]


class Loop(Protocol):
    """Run a family's schedule."""

    def run(
        self,
        labels: NDArray[np.int64],
        streams: Sequence[np.random.Generator],
        sampling: Sampling,
        tick: Callable[[], None],
    ) -> tuple[FloatImage, Tokens | Latents]:
        """Return images [B, 3, H, W] and tokens [B, L] of labels [B], with a noise stream each.

        Continuous tokens are latents [B, c, h, w]. `tick` is called after every step.

        Raises:
            GenerationError: logits that are not finite; the message says at which step.
        """


def open_graphs(
    folder: Path, names: Sequence[str], session: OpenSession, threads: int
) -> dict[str, Session]:
    """Open sessions of an export folder's graphs, by their names.

    Raises:
        BundleError: a graph is missing or does not load.
    """
    paths = {name: folder / f"{name}.onnx" for name in names}
    absent = [path.name for path in paths.values() if not has_graph(path)]
    if absent:
        raise BundleError(
            f"{bounded(absent, 'graphs')} missing", where=str(folder), do="export the model again"
        )
    return {name: session(path, threads) for name, path in paths.items()}


class Batch:
    """Arrange a batch of images as rows of the transformer.

    The conditional rows come first, then under guidance as many of the null class. Static graphs
    always have both, for all images: missing ones are filled up, and their results are not used.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        null: int,
        sampling: Sampling,
        static_batch: int | None = None,
    ) -> None:
        self.count = len(labels)
        self.images = static_batch or self.count
        self._guided = sampling.cfg > 0
        padded = np.pad(labels, (0, self.images - self.count))
        doubled = self._guided or static_batch is not None
        self.labels = np.concatenate([padded, np.full_like(padded, null)]) if doubled else padded
        self.rows = len(self.labels)

    def split_rows(self, logits: Logits) -> list[Logits]:
        """Split [rows, n, V] into the rows in use, [B, n, V]: conditional, then null ones."""
        starts = (0, self.images) if self._guided else (0,)
        return [logits[start : start + self.count] for start in starts]

    def fill_rows(self, tokens: Tokens) -> Tokens:
        """Return [B, n] as [rows, n]: conditional and null rows get the same tokens."""
        filled = np.pad(tokens, ((0, self.images - self.count), (0, 0)))
        return np.tile(filled, (self.rows // self.images, 1))


class CacheSpec(Protocol):
    """Describe a step graph's caches, as `generator.json` says."""

    @property
    def depth(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def kv_type(self) -> KvType: ...

    @property
    def kv_scales(self) -> str | msgspec.UnsetType: ...

    @property
    def static_batch(self) -> int | None: ...

    @property
    def vocab_size(self) -> int: ...


class CachedSteps:
    """Run the step graphs, with a batch's keys and values in the sessions' memory.

    One graph serves all steps. With fixed shapes there is one per step, and the first takes no
    cache.
    """

    def __init__(self, graphs: Sequence[Session], spec: CacheSpec) -> None:
        """Check the caches and the vocabulary of the graphs.

        Raises:
            BundleError: a graph has other caches or another vocabulary.
        """
        fixed = spec.static_batch is not None
        for k, graph in enumerate(graphs):
            require_caches(
                graph,
                spec.depth,
                spec.kv_type,
                first=fixed and k == 0,
                scales=None if spec.kv_scales is msgspec.UNSET else spec.kv_scales,
            )
            require_vocabulary(graph, spec.vocab_size)
        self._graphs = graphs
        self._spec = spec
        self.start(1)

    def start(self, rows: int) -> None:
        """Start a new batch with an empty cache."""
        self._next = 0
        shape = (rows, self._spec.heads, 0, self._spec.head_dim)
        self._cache = KvCache.empty(self._graphs[0], shape, self._spec.kv_type)

    def to_device(self, array: Array) -> DeviceValue:
        """Return the array as a value in the sessions' memory."""
        return self._graphs[0].to_device(array)

    def run(self, rows: int, n: int, feeds: Mapping[str, Array | DeviceValue]) -> Logits:
        """Return logits [rows, n, V] of the next n tokens; `feeds` gets positions and cache.

        Raises:
            GenerationError: the cache is of another batch.
        """
        positions = np.arange(self._cache.length, self._cache.length + n)
        graph = self._graphs[min(self._next, len(self._graphs) - 1)]
        self.path = graph.path
        self._next += 1
        outputs = graph.run_on_device(
            {"position_ids": positions, **feeds, **self._cache.feeds(rows)}, host=("logits",)
        )
        self._cache = self._cache.after(outputs, n)
        return outputs["logits"].numpy().astype(np.float32, copy=False)


def require_vocabulary(graph: Session, size: int) -> None:
    """Raise BundleError for logits of another vocabulary than `generator.json` says."""
    shape = graph.shapes.get("logits") or (None,)
    if isinstance(shape[-1], int) and shape[-1] != size:
        raise BundleError(
            f"has logits of {shape[-1]} tokens, but generator.json says vocab_size {size}",
            where=str(graph.path),
            do="export the model again",
        )


def choose(
    split_rows: Sequence[Logits],
    strength: float,
    streams: Sequence[np.random.Generator],
    sampling: Sampling,
) -> Tokens:
    """Choose tokens [B, n] from logits [B, n, V], guided by `strength` with unconditional ones.

    A draw takes the next n rows of noise of each image's stream.
    """
    conditional, *unconditional = split_rows
    logits = guide(conditional, unconditional[0], strength) if unconditional else conditional
    count, n, _ = logits.shape
    flat = logits.reshape(count * n, -1)
    if sampling.greedy:
        tokens: Tokens = np.argmax(flat, axis=1)
    else:
        if sampling.temperature != 1:
            flat = flat / np.float32(sampling.temperature)
        noise = exponential_noise(streams, n, flat.shape[1])
        tokens = sample(flat, noise, sampling.top_k, sampling.top_p)
    return tokens.reshape(count, n)


def require_finite(
    split_rows: Sequence[NDArray[np.floating]], step: str, path: Path, what: str = "logits of"
) -> None:
    """Raise GenerationError that names the step, and the first bad token and image."""
    for logits in split_rows:
        finite = np.isfinite(logits)
        if finite.all():
            continue
        rows, tokens = np.nonzero(~finite.all(axis=2))
        raise GenerationError(
            f"{what} {step} are not finite, first at token {tokens[0]} of image "
            f"{rows[0]} of the batch",
            where=str(path),
            do="check the weights; an FP16 graph may overflow",
        )
