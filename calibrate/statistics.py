"""Define streaming statistics of tensors, and how shards of them merge.

Min, max and counts merge exactly; sums are float64, so any split of the data agrees to 1e-12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..errors import CalibrationError
from ..graph.sites import Site
from ..workspace.schemas import schema_problem


@dataclass(frozen=True, slots=True)
class TensorStats:
    """Hold statistics of one tensor [N, C, ...] per channel, from `count` elements each.

    Arrays are [C]. Channels with different numbers of elements have a count each, [C]; one without
    any has an empty range, whose minimum is above its maximum.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    square: NDArray[np.float64]
    count: int | NDArray[np.int64]

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Return the mean square of each channel, [C]; 0 without samples."""
        return self.square / np.maximum(self.count, 1)

    def filled(self) -> TensorStats:
        """Return statistics with the range and mean square of all where nothing was seen."""
        unseen = np.broadcast_to(np.equal(self.count, 0), self.low.shape)
        if not unseen.any() or unseen.all():
            return self
        mean = self.mean_square[~unseen].mean()
        return TensorStats(
            np.where(unseen, self.low.min(), self.low),
            np.where(unseen, self.high.max(), self.high),
            np.where(unseen, mean, self.square),
            np.where(unseen, 1, self.count),
        )

    def merge(self, other: TensorStats) -> TensorStats:
        return TensorStats(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.square + other.square,
            self.count + other.count,
        )


STATISTICS = "statistics.safetensors"  # the file's name in the folder of a calibration
SCHEMA = "arvg-trt/statistics/v1"
EXPORT = "export"  # beside them in a file: the digest of the export that they are of
# Statistics by name: of a site's input, and with these behind the name of its positions and of the
# site's output.
POSITION, OUTPUT = ":position", ":output"
Statistics = dict[str, TensorStats]


def merge(shards: Iterable[Mapping[str, TensorStats]]) -> Statistics:
    """Combine shards of the same model in any order.

    Raises:
        CalibrationError: shards that do not hold the same tensors.
    """
    total: Statistics = {}
    for shard in shards:
        if total and shard.keys() != total.keys():
            odd = sorted(shard.keys() ^ total.keys())
            raise CalibrationError(
                f"statistics of different models: {odd[0]} is only in one of them",
                do="merge shards of one model only",
            )
        for name, stats in shard.items():
            before = total.get(name)
            if before is not None and before.low.shape != stats.low.shape:
                raise CalibrationError(
                    f"statistics of different models: {name} has {len(before.low)} channels in one "
                    f"and {len(stats.low)} in another",
                    do="merge shards of one model only",
                )
            total[name] = stats if before is None else before.merge(stats)
    return total


def save_statistics(
    statistics: Mapping[str, TensorStats], path: Path, *, export: str | None = None
) -> None:
    """Write a statistics file; `export` is the digest of the export that they are of."""
    tensors: dict[str, NDArray[np.generic]] = {}
    for name, stats in statistics.items():
        tensors[f"{name}:low"] = stats.low
        tensors[f"{name}:high"] = stats.high
        tensors[f"{name}:square"] = stats.square
        tensors[f"{name}:count"] = np.atleast_1d(np.asarray(stats.count, np.int64))
    if export is not None:  # a tensor, since metadata of two keys come in any order
        tensors[EXPORT] = np.frombuffer(bytes.fromhex(export), np.uint8)
    data = save(tensors, metadata={"schema": SCHEMA})
    path.write_bytes(data)  # save_file hides the errno of a full disk


def load_statistics(path: Path) -> Statistics:
    """Read a statistics file.

    Raises:
        CalibrationError: it is not a statistics file of this version.
    """
    return load_exported(path)[0]


def load_exported(path: Path) -> tuple[Statistics, str | None]:
    """Return statistics and the digest of their export, None where the file does not say it.

    Raises:
        CalibrationError: not a statistics file of this version.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            problem = schema_problem((file.metadata() or {}).get("schema"), SCHEMA)
            if problem is not None:
                do = problem.do or "run `arvg-trt calibrate` again"
                raise CalibrationError(problem.what, where=str(path), do=do)
            keys = set(file.keys())
            names = sorted({key.rpartition(":")[0] for key in keys - {EXPORT}})
            found = {name: read_stats(file, name) for name in names}
            digest = file.get_tensor(EXPORT).tobytes().hex() if EXPORT in keys else None
            return found, digest
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CalibrationError(
            f"cannot be read: {error}", where=str(path), do="run `arvg-trt calibrate` again"
        ) from error


def read_stats(file: Any, name: str) -> TensorStats:
    """Return the statistics of a tensor.

    Raises:
        ValueError: they are not of one number of channels, or no statistics of anything.
    """
    low, high, square, count = (
        file.get_tensor(f"{name}:{kind}") for kind in ("low", "high", "square", "count")
    )
    for kind, array in (("low", low), ("high", high), ("square", square)):
        if array.dtype != np.float64 or array.ndim != 1 or array.shape != low.shape:
            raise ValueError(
                f"{name}:{kind} is {array.dtype} {list(array.shape)}, not float64 of one length"
            )
        if np.isnan(array).any():
            raise ValueError(f"{name}:{kind} has NaN")
    if count.dtype != np.int64 or count.ndim != 1 or len(count) not in (1, len(low)):
        raise ValueError(f"{name}:count is {count.dtype} {list(count.shape)}, not one a channel")
    if not len(low) or (count < 0).any() or (square < 0).any():
        raise ValueError(f"{name} has no channels, or a count or sum of squares below 0")
    return TensorStats(low, high, square, int(count[0]) if len(count) == 1 else count)


def require_channels(
    statistics: Mapping[str, TensorStats], sites: Iterable[Site], where: str
) -> None:
    """Raise CalibrationError for statistics whose channels are not the weight's."""
    for site in sites:
        stats, shape = statistics.get(site.name), site.weight_shape
        if stats is None or site.weight is None or len(shape) < 2:
            continue
        channels = len(stats.low)
        grouped = site.op == "Conv" and channels % max(1, shape[1]) == 0
        if channels not in shape and not grouped:
            raise CalibrationError(
                f"{site.name} has statistics of {channels} channels and a weight {list(shape)}",
                where=where,
                do="run `arvg-trt calibrate` again",
            )
