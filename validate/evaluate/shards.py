"""Write and read shards of an evaluation: images as WebDataset, features beside them.

A shard is a tar of `ID.png` and `ID.cls`, and a safetensors file of features that is written last:
where that is whole, so is the shard. Every file takes its name in one rename, so that a worker that
is killed leaves none or a whole one.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...errors import WorkspaceError
from ...runtime.sampling import Sampling
from ...workspace.files import atomic_stream, atomic_write, decode_json, encode_json

PLAN, SHARDS = "plan.json", "shards"
IDS = "ids"


class EvaluationPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Say which images an evaluation makes: image k is of class ``labels[k % len(labels)]``.

    ``model`` is a digest of the graphs, ``features`` that of the network, ``device`` where the
    graphs run: a GPU rounds in another way. An image depends on the seed and its number alone;
    batches are cut within shards, so that any number of workers in any order makes the same bytes.
    """

    schema: str = "arvg-trt/evaluation/v1"
    model: str
    count: int
    labels: tuple[int, ...]
    seed: int
    sampling: Sampling
    batch_size: int
    shard_size: int
    features: str | None = None
    device: str = "cpu"
    keep_images: bool = True

    @property
    def shards(self) -> int:
        return -(-self.count // self.shard_size)

    @property
    def digest(self) -> str:
        return hashlib.sha256(encode_json(self)).hexdigest()

    def numbers(self, shard: int) -> range:
        """Return the numbers of a shard's images."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def labels_of(self, shard: int) -> list[int]:
        return [self.labels[k % len(self.labels)] for k in self.numbers(shard)]


def open_plan(folder: Path, plan: EvaluationPlan) -> None:
    """Write the plan into a folder, or check that it is the one there, which is then gone on with.

    Raises:
        WorkspaceError: the folder has another plan, which is left as it is.
    """
    path = folder / PLAN
    if not path.exists():
        atomic_write(path, encode_json(plan))
        return
    found = decode_json(path, EvaluationPlan, do="name another folder with -o")
    wanted, given = (msgspec.to_builtins(p) for p in (plan, found))
    other = [name for name in wanted if wanted[name] != given[name]]
    if other:
        raise WorkspaceError(
            f"was begun with other {', '.join(other)}",
            where=str(folder),
            do="name another folder with -o, or go on with the same options and model",
        )


def remove_leftovers(folder: Path) -> None:
    """Remove what killed workers left of files that they were writing; every shard is there."""
    for path in (folder / SHARDS).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def image_file(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:06d}.tar"


def feature_file(folder: Path, shard: int) -> Path:
    return folder / SHARDS / f"{shard:06d}.safetensors"


def write_shard(
    folder: Path,
    plan: EvaluationPlan,
    shard: int,
    images: Sequence[NDArray[np.uint8]],
    features: dict[str, NDArray[np.float32]],
) -> None:
    """Write a shard of images [H, W, 3] and their features [n, D] by name.

    Raises:
        WorkspaceError: it cannot be written.
    """
    numbers = plan.numbers(shard)
    if plan.keep_images:
        with atomic_stream(image_file(folder, shard)) as stream:
            write_tar(stream, numbers, plan.labels_of(shard), images)
    arrays: dict[str, NDArray[Any]] = {IDS: np.arange(numbers.start, numbers.stop), **features}
    data = save(arrays, metadata={"plan": plan.digest})
    atomic_write(feature_file(folder, shard), data)


def write_tar(
    stream: Any, numbers: range, labels: Sequence[int], images: Sequence[NDArray[np.uint8]]
) -> None:
    """Write images and classes as WebDataset reads them; equal images give equal bytes."""
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, label, image in zip(numbers, labels, images, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            for suffix, data in (("cls", str(label).encode()), ("png", buffer.getvalue())):
                entry = tarfile.TarInfo(f"{number:09d}.{suffix}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


def is_written(folder: Path, plan: EvaluationPlan, shard: int) -> bool:
    """Return whether a shard lies there whole, of this plan; one that is damaged is not."""
    if plan.keep_images and not image_file(folder, shard).is_file():
        return False
    path = feature_file(folder, shard)
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            same = (file.metadata() or {}).get("plan") == plan.digest
            return same and file.get_slice(IDS).get_shape() == [len(plan.numbers(shard))]
    except (SafetensorError, OSError):
        return False


def missing(folder: Path, plan: EvaluationPlan) -> list[int]:
    """Return the numbers of the shards that are not written yet."""
    return [shard for shard in range(plan.shards) if not is_written(folder, plan, shard)]


def read_features(folder: Path, plan: EvaluationPlan, name: str) -> Iterator[NDArray[np.float32]]:
    """Yield the features of that name, shard by shard, in the order of the images."""
    for shard in range(plan.shards):
        with safe_open(feature_file(folder, shard), framework="numpy") as file:
            yield file.get_tensor(name)
