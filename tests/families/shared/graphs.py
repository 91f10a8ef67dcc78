"""Help tests with exported graphs: read their shapes, change a weight, fold a scale."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from arvg_trt.graph.sites import ProducerFold, Site, SiteMap
from arvg_trt.graph.weight_file import INLINE, WEIGHTS
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.workspace.files import decode_json

Array = NDArray[np.generic]
Floats = NDArray[np.float32]
PAGE = 4096


def random_images(count: int, height: int, width: int, seed: int = 4) -> Floats:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, 3, height, width)).astype(np.float32)


def relative(found: Array, wanted: Array | torch.Tensor) -> float:
    """The largest difference, in units of the RMS of what is wanted."""
    reference = wanted.double().numpy() if isinstance(wanted, torch.Tensor) else wanted
    return float(np.abs(found - reference).max() / np.sqrt(np.mean(np.square(reference))))


def sites_of(folder: Path, graphs: Iterable[str]) -> tuple[Site, ...]:
    found = decode_json(folder / "sites.json", SiteMap, do="").sites
    return tuple(site for site in found if site.graph in graphs)


def checked_shapes(path: Path) -> dict[str, list[object]]:
    """Inputs and outputs by name, of a graph that is valid and of opset 21 alone."""
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path, load_external_data=False)
    assert {i.domain: i.version for i in proto.opset_import} == {"": 21}
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.output)
    }


def operators(path: Path) -> list[str]:
    return [n.op_type for n in onnx.load(path, load_external_data=False).graph.node]


def initializers(path: Path) -> dict[str, Array]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


def assert_every_weight_is_stored_once(folder: Path, graphs: Iterable[str]) -> None:
    """The file is no larger than the distinct large tensors, each rounded up to a page."""
    distinct: dict[bytes, int] = {}
    for graph in graphs:
        for tensor in initializers(folder / f"{graph}.onnx").values():
            if tensor.nbytes > INLINE:
                distinct[tensor.tobytes()] = -(-tensor.nbytes // PAGE) * PAGE
    size = (folder / WEIGHTS).stat().st_size
    assert sum(distinct.values()) - PAGE < size <= sum(distinct.values())


def copied(folder: Path, target: Path) -> Path:
    """A copy of an export that a test may change."""
    return Path(shutil.copytree(folder, target))


def change(path: Path, which: str | Sequence[int], new: Callable[[Array], Array]) -> None:
    """Change the values of an initializer, found by its name or its shape."""
    model = onnx.load(path)
    found = next(t for t in model.graph.initializer if which in (t.name, list(t.dims)))
    found.CopyFrom(numpy_helper.from_array(new(numpy_helper.to_array(found)), found.name))
    onnx.save(model, path)


def with_noise(values: Array) -> Array:
    noise = np.random.default_rng(0).normal(size=values.shape)
    changed: Array = values + noise.astype(np.float32)
    return changed


def watched(path: Path, names: Iterable[str]) -> onnx.ModelProto:
    """A graph that also gives tensors inside it."""
    model = onnx.load(path)
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(value)
    return model


def fold(values: dict[str, Array], how: ProducerFold, s: Floats, p: Floats) -> None:
    """Fold a scale and a shift of a linear's input into what makes it."""
    for part in how.divide:
        array = values[part.initializer]
        at = [slice(None)] * array.ndim
        at[part.axis] = slice(part.start, part.start + s.size)
        shape = [1] * array.ndim
        shape[part.axis] = s.size
        array[tuple(at)] /= s.reshape(shape)  # type: ignore[misc]
    for part in how.subtract:
        values[part.initializer][part.start : part.start + p.size] -= p


def assert_a_fold_changes_the_inputs_of_its_sites_alone(
    path: Path, sites: Sequence[Site], feeds: Mapping[str, Array], folder: Path
) -> None:
    """x' = x / s - p with W' = s W and b' = b + p W' leaves the outputs, so the fold is right.

    `sites` are all that read this input. Without a bias to take it there is no shift p.
    """
    site = sites[0]
    assert site.producer_fold is not None
    rng = np.random.default_rng(0)
    s = np.exp(rng.normal(size=site.weight_shape[0])).astype(np.float32)
    p = rng.normal(size=site.weight_shape[0]).astype(np.float32)
    if not site.producer_fold.subtract:
        assert all(one.bias is None for one in sites)
        p[:] = 0
    model = watched(path, [site.input])
    onnx.save(model, folder / "before.onnx")
    values = {i.name: numpy_helper.to_array(i).copy() for i in model.graph.initializer}
    fold(values, site.producer_fold, s, p)
    for one in sites:
        assert one.input == site.input and one.weight is not None
        values[one.weight] *= s[:, None]  # type: ignore[misc]
        if one.bias is not None:
            values[one.bias] += p @ values[one.weight]  # type: ignore[operator]
    for initializer in model.graph.initializer:
        initializer.CopyFrom(numpy_helper.from_array(values[initializer.name], initializer.name))
    onnx.save(model, folder / "after.onnx")
    before, after = (
        reference_session(folder / f"{which}.onnx").run(dict(feeds))
        for which in ("before", "after")
    )
    assert relative(after.pop(site.input), before.pop(site.input) / s - p) < 1e-4
    assert before and before.keys() == after.keys()
    for output, value in before.items():
        assert relative(after[output], value) < 2e-4
