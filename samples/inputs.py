"""The inputs of a user's own graphs, and whether a file of arrays fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CalibrationError, bounded
from ..runtime.npz import BadArrays, read_npz
from ..workspace.facts import custom_graphs
from ..workspace.manifest import Manifest
from .files import Array

# Of a float picture's magnitude: standardized ones reach 2.7.
MOST_OF_A_PICTURE = 16.0
MOST_INPUTS = 8  # that a message names: a graph with KV caches has 100


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input that has to be fed; a dimension of any size is a text or None."""

    graph: str
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def text(self) -> str:
        dims = ", ".join(str(d) if d is not None else "?" for d in self.shape)
        return f"{self.graph}/{self.name} {self.dtype} [{dims}]"

    @property
    def is_image(self) -> bool:
        """Return whether it is float32 [N, 3, H, W]."""
        rank_and_type = len(self.shape) == 4 and self.dtype == np.float32
        return rank_and_type and self.shape[1] == 3 and self.rows == 1

    @property
    def rows(self) -> int:
        """Return the length of a sample's first axis: 1, or what the graph fixes."""
        first = self.shape[0] if self.shape else 1
        return first if isinstance(first, int) else 1

    def sample(self, array: Array, k: int) -> Array:
        """Return sample `k` as it is fed; an array of one more axis has it at `k`."""
        if array.ndim > len(self.shape):
            return np.asarray(array[k])
        return array[k * self.rows : (k + 1) * self.rows]


def needed_inputs(exported: Manifest) -> tuple[GraphInput, ...]:
    """Return the inputs of graphs, in the order that they run, that no earlier graph makes."""
    made: set[str] = set()
    needed = []
    for graph in custom_graphs(exported):
        for value in graph.inputs:
            if value.name not in made:
                needed.append(
                    GraphInput(graph.name, value.name, np.dtype(value.dtype), value.shape or ())
                )
        made |= {value.name for value in graph.outputs}
    return tuple(needed)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read every array of a `.npz`; those that are not compressed stay in the file, mapped.

    Raises:
        CalibrationError: no such file, or another kind of file.
    """
    if path.is_dir():
        do = "--feeds takes a .npz of arrays; a folder of images is given with --images"
        raise CalibrationError("is a folder", where=str(path), do=do)
    if not path.is_file():
        raise CalibrationError("no such file", where=str(path), do="--feeds takes a .npz of arrays")
    try:
        return read_npz(path)
    except BadArrays as error:
        raise CalibrationError(
            str(error),
            where=str(path),
            do=error.do or "write it with numpy.savez(FILE, INPUT=x)",
        ) from error


def key_of(arrays: Mapping[str, Array], needed: GraphInput) -> str | None:
    """Return the file's name for the array of an input, None without one."""
    for key in (f"{needed.graph}/{needed.name}", needed.name):
        if key in arrays:
            return key
    return None


def check_names(arrays: Mapping[str, Array], inputs: Sequence[GraphInput], where: str) -> None:
    """Raises CalibrationError for an array that no input takes."""
    taken = {key for needed in inputs for key in (needed.name, f"{needed.graph}/{needed.name}")}
    unknown = sorted(set(arrays) - taken)
    if unknown:
        raise CalibrationError(
            f"{unknown[0]} is no input to feed",
            where=where,
            do=f"inputs: {bounded([each.text for each in inputs], 'inputs', MOST_INPUTS)}",
        )


def require_fed(
    inputs: Sequence[GraphInput], arrays: Mapping[str, Array], where: str, *, with_images: bool
) -> None:
    """Raises CalibrationError for an input that nothing feeds; images feed one."""
    if with_images:
        image_input(inputs, arrays)
        return
    missing = [needed for needed in inputs if key_of(arrays, needed) is None]
    if missing:
        raise CalibrationError(
            f"has no array for {missing[0].text}",
            where=where,
            do=f"add it as {missing[0].name}, one sample along the first axis",
        )


def image_input(inputs: Sequence[GraphInput], arrays: Mapping[str, Array]) -> GraphInput:
    """Return the one input that images go to.

    Raises:
        CalibrationError: several are left, or it is no image.
    """
    left = [needed for needed in inputs if key_of(arrays, needed) is None]
    if len(left) != 1 or not left[0].is_image:
        found = bounded([each.text for each in left], "inputs", MOST_INPUTS, "; ") or "none"
        raise CalibrationError(
            f"--images feeds one float32 [N, 3, H, W] input, but those to feed are: {found}",
            do="give the other inputs with --feeds FILE.npz",
        )
    return left[0]


def check_arrays(
    arrays: Mapping[str, Array], inputs: Sequence[GraphInput], where: str
) -> int | None:
    """Check the arrays; returns the number of samples that all have, None without arrays.

    Raises:
        CalibrationError: another type, rank, size or number of samples, NaN or infinity.
    """
    counts: dict[str, int] = {}
    for needed in inputs:
        key = key_of(arrays, needed)
        if key is None:
            continue
        array = arrays[key]
        if array.dtype != needed.dtype:
            raise CalibrationError(
                f"{key} is {array.dtype}, but the input is {needed.text}",
                where=where,
                do=f"convert it: .astype(numpy.{needed.dtype})",
            )
        sizes = array.shape[1:]
        wanted = needed.shape if array.ndim == len(needed.shape) + 1 else needed.shape[1:]
        fixed = [(a, b) for a, b in zip(sizes, wanted, strict=False) if isinstance(b, int)]
        if array.ndim < 1 or len(sizes) != len(wanted) or any(a != b for a, b in fixed):
            raise CalibrationError(
                f"{key} has shape {list(array.shape)}, but the input is {needed.text}",
                where=where,
                do=shape_advice(array.shape, needed),
            )
        if np.issubdtype(array.dtype, np.floating) and array.size:
            bad = next((k for k, row in enumerate(array) if not np.isfinite(row).all()), None)
            if bad is not None:
                raise CalibrationError(
                    f"{key} has NaN or infinity in sample {bad}",
                    where=where,
                    do="remove the sample",
                )
        rows = needed.rows if array.ndim == len(needed.shape) else 1
        if len(array) % rows:
            raise CalibrationError(
                f"{key} has {len(array)} rows, but {needed.text} takes {rows} at once",
                where=where,
                do=f"give a multiple of {rows}",
            )
        counts[key] = len(array) // rows
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise CalibrationError(
            f"arrays differ in their number of samples: {text}",
            where=where,
            do="give every input the same number",
        )
    found = next(iter(counts.values()), None)
    if found == 0:
        raise CalibrationError("holds no sample", where=where, do="give one at least")
    return found


def shape_advice(shape: Sequence[int], needed: GraphInput) -> str:
    """Return what makes an array of another shape fit an input: axes in another order, or one more.

    Pictures are often saved as [N, H, W, 3], or one of them as [3, H, W].
    """
    rank = len(needed.shape)
    if len(shape) == rank - 1 and fits((1, *shape), needed.shape):
        return "it is one sample, with no axis of samples: x[None]"
    if len(shape) == rank > 2:
        last_second = (0, rank - 1, *range(1, rank - 1))
        for order in (last_second, *permutations(range(rank))):
            if order[0] == 0 and fits([shape[axis] for axis in order], needed.shape):
                return f"its axes are in another order: x.transpose{order}"
    return "give samples along the first axis, and the others as the input has them"


def fits(shape: Sequence[int], wanted: Sequence[int | str | None]) -> bool:
    """Return whether the axes behind the first have the sizes that are fixed."""
    pairs = zip(shape[1:], wanted[1:], strict=True)
    return all(not isinstance(b, int) or a == b for a, b in pairs)


def check_pictures(
    arrays: Mapping[str, Array],
    inputs: Sequence[GraphInput],
    where: str,
    value_range: tuple[float, float] | None,
) -> None:
    """Check that arrays for image inputs can be pictures that the model is made for.

    Without a `value_range` they reach to `MOST_OF_A_PICTURE`: further than [0, 1], [-1, 1] and
    standardized ones, and not as far as bytes.

    Raises:
        CalibrationError: values out of range, a picture of one value; names the sample.
    """
    low, high = value_range or (-MOST_OF_A_PICTURE, MOST_OF_A_PICTURE)
    for needed in inputs:
        key = key_of(arrays, needed)
        if key is None or not needed.is_image:
            continue
        for k, picture in enumerate(arrays[key]):
            least, most = float(picture.min()), float(picture.max())
            if not (low <= least and most <= high):
                limits = f", outside [{low:g}, {high:g}]" if value_range else ""
                raise CalibrationError(
                    f"{key} has values from {least:g} to {most:g}{limits} in sample {k}",
                    where=where,
                    do="scale it as in training: x / 255 for [0, 1], x / 127.5 - 1 for [-1, 1]; "
                    "if the model takes bytes, give --value-range 0 255",
                )
            if least == most:
                raise CalibrationError(
                    f"{key} has a constant image in sample {k}: every value is {least:g}",
                    where=where,
                    do="remove it: it says nothing about activation ranges",
                )


def require_batch(
    inputs: Sequence[GraphInput], arrays: Mapping[str, Array], batch_size: int
) -> None:
    """Raises CalibrationError for samples that cannot be joined along a first axis."""
    for needed in inputs if batch_size != 1 else ():
        key = key_of(arrays, needed)
        fixed = bool(needed.shape) and isinstance(needed.shape[0], int)
        if fixed or (key is not None and arrays[key].ndim > len(needed.shape)):
            raise CalibrationError(
                f"{needed.text} takes one sample at a time", do="calibrate with --batch-size 1"
            )
