"""What the schedules of all families share: their graphs, one step over a cache, one choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, GenerationError
from ..images import FloatImage
from ..kv_cache import KvCache, require_caches
from ..sampling import Logits, Sampling, Tokens, exponential_noise, guide, sample
from ..sessions.onnxruntime import Array, DeviceValue, OnnxRuntimeSession

Count = Annotated[int, msgspec.Meta(ge=1)]
OpenSession = Callable[[Path, int], OnnxRuntimeSession]


class Defaults(msgspec.Struct, frozen=True, kw_only=True):
    """The sampling that the model's authors evaluate it with; a family without a `cfg_power` has
    no such parameter.
    """

    cfg: float
    top_k: int
    top_p: float
    temperature: float = 1.0
    cfg_power: float | None = None


class Loop(Protocol):
    """A family's schedule."""

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
            GenerationError: logits that are not finite; the message says at which step.
        """


def open_graphs(
    folder: Path, names: Sequence[str], session: OpenSession, threads: int
) -> dict[str, OnnxRuntimeSession]:
    """Sessions of an export folder's graphs by their names.

    Raises:
        BundleError: a graph is missing or does not load.
    """
    paths = {name: folder / f"{name}.onnx" for name in names}
    absent = [path.name for path in paths.values() if not path.is_file()]
    if absent:
        raise BundleError(
            f"{', '.join(absent)} missing", where=str(folder), do="export the model again"
        )
    return {name: session(path, threads) for name, path in paths.items()}


def guided_rows(labels: NDArray[np.int64], null: int, sampling: Sampling) -> NDArray[np.int64]:
    """Labels [B] -> those of the transformer's rows: with guidance, B more of the null class."""
    return np.concatenate([labels, np.full_like(labels, null)]) if sampling.cfg > 0 else labels


class CachedStep:
    """`step.onnx`, and the keys and values of a batch so far, in the session's memory."""

    def __init__(self, session: OnnxRuntimeSession, depth: int, heads: int, head_dim: int) -> None:
        """Raises BundleError for a graph with other caches."""
        require_caches(session, depth)
        self.session = session
        self._shape = (heads, head_dim)
        self.start(0)

    def start(self, rows: int) -> None:
        """A new batch: nothing is cached."""
        self._cache = KvCache.empty(self.session, rows, *self._shape)

    def run(self, rows: int, n: int, feeds: Mapping[str, Array | DeviceValue]) -> Logits:
        """Logits [rows, n, V] of the next n tokens; `feeds` but for their positions and the cache.

        Raises:
            GenerationError: the cache is of another batch.
        """
        positions = np.arange(self._cache.length, self._cache.length + n)
        outputs = self.session.run_on_device(
            {"position_ids": positions, **feeds, **self._cache.feeds(rows)}
        )
        self._cache = self._cache.after(outputs, n)
        return outputs["logits"].numpy().astype(np.float32, copy=False)


def choose(
    logits: Logits,
    count: int,
    strength: float,
    streams: Sequence[np.random.Generator],
    sampling: Sampling,
) -> Tokens:
    """Tokens [B, n] from logits [rows, n, V], guided by `strength` if there are more rows than B.

    A draw takes the next n rows of noise of each image's stream.
    """
    if len(logits) > count:
        logits = guide(logits[:count], logits[count:], strength)
    n = logits.shape[1]
    flat = logits.reshape(count * n, -1)
    if sampling.greedy:
        tokens: Tokens = np.argmax(flat, axis=1)
    else:
        if sampling.temperature != 1:
            flat = flat / np.float32(sampling.temperature)
        noise = exponential_noise(streams, n, flat.shape[1])
        tokens = sample(flat, noise, sampling.top_k, sampling.top_p)
    return tokens.reshape(count, n)


def require_finite(logits: Logits, count: int, step: str, path: Path) -> None:
    """Raises GenerationError that names the step, and the first token and image of the batch."""
    finite = np.isfinite(logits)
    if finite.all():
        return
    rows, tokens = np.nonzero(~finite.all(axis=2))
    raise GenerationError(
        f"logits of {step} are not finite, first at token {tokens[0]} of image "
        f"{rows[0] % count} of the batch",
        where=str(path),
        do="check the weights; an FP16 graph may overflow",
    )
