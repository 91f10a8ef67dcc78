"""Samples on disk, and what each of several graphs is fed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from arvg_trt.errors import BundleError, CalibrationError
from arvg_trt.samples.files import (
    LABELS,
    GraphChain,
    feeds_of,
    load_sample,
    sample_batches,
    sample_files,
    sample_labels,
    save_sample,
)


def graph(folder: Path, name: str, op: str, inputs: list[str], output: str) -> None:
    made = helper.make_graph(
        [helper.make_node(op, inputs, [output])],
        name,
        [helper.make_tensor_value_info(i, TensorProto.FLOAT, ["n", 2]) for i in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 2])],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=8)
    onnx.save(model, folder / f"{name}.onnx")


@pytest.fixture
def chain(tmp_path: Path) -> GraphChain:
    """first: a + b -> c; second: c * b -> d."""
    graph(tmp_path, "first", "Add", ["a", "b"], "c")
    graph(tmp_path, "second", "Mul", ["c", "b"], "d")
    return GraphChain.open(tmp_path, ["first", "second"])


A, B = np.float32([[1, 2]]), np.float32([[3, 5]])


def test_an_output_feeds_a_later_graph(chain: GraphChain) -> None:
    outputs = chain.run({"a": A, "b": B})
    assert np.array_equal(outputs["first/c"], A + B)
    assert np.array_equal(outputs["second/d"], (A + B) * B)


def test_an_array_for_one_graph_goes_before_outputs_and_plain_names(chain: GraphChain) -> None:
    outputs = chain.run({"a": A, "b": B, "second/c": A, "second/b": 10 * B})
    assert np.array_equal(outputs["first/c"], A + B)
    assert np.array_equal(outputs["second/d"], A * 10 * B)


def test_graphs_can_be_fed_what_another_chain_made(chain: GraphChain) -> None:
    given = {"first/c": 7 * A, "second/d": A}
    outputs = chain.run({"a": A, "b": B}, given=given)
    assert np.array_equal(outputs["first/c"], A + B)
    assert np.array_equal(outputs["second/d"], 7 * A * B)


def test_an_output_never_feeds_an_earlier_graph() -> None:
    with pytest.raises(CalibrationError, match="nothing feeds the input b of the first graph"):
        feeds_of("first", ["a", "b"], {"a": A, "second/b": B}, {})


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"second\.onnx is missing"):
        graph(tmp_path, "first", "Add", ["a", "b"], "c")
        GraphChain.open(tmp_path, ["first", "second"])


def test_samples_come_back_bit_by_bit_and_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples: list[dict[str, NDArray[Any]]] = [
        {
            "x": rng.standard_normal((1, 3, 2)).astype(np.float32),
            "g/ids": rng.integers(0, 9, (1, 4)),
        }
        for _ in range(5)
    ]
    for k, sample in enumerate(samples):
        save_sample(sample, tmp_path, k)
    files = sample_files(tmp_path)
    for path, sample in zip(files, samples, strict=True):
        loaded = load_sample(path)
        assert loaded.keys() == sample.keys()
        for key, array in sample.items():
            assert loaded[key].dtype == array.dtype and np.array_equal(loaded[key], array)
    found = list(sample_batches(files, 2))
    assert [names for names, _ in found] == [
        ["00000.safetensors", "00001.safetensors"],
        ["00002.safetensors", "00003.safetensors"],
        ["00004.safetensors"],
    ]
    joined = np.concatenate([arrays["g/ids"] for _, arrays in found])
    assert np.array_equal(joined, np.concatenate([s["g/ids"] for s in samples]))


def test_a_picture_is_fed_as_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = save_sample(pixels, tmp_path, 0)
    assert path.name == "00000.png"
    image = load_sample(path)["image"]
    assert image.shape == (1, 3, 4, 6) and image.dtype == np.float32
    np.testing.assert_allclose((image[0].transpose(1, 2, 0) + 1) * 127.5, pixels, atol=1e-4)


def test_samples_of_different_shapes_need_batches_of_one(tmp_path: Path) -> None:
    for k, tokens in enumerate((3, 4)):
        save_sample({"x": np.zeros((1, tokens), np.float32)}, tmp_path, k)
    files = sample_files(tmp_path)
    assert [a["x"].shape for _, a in sample_batches(files, 1)] == [(1, 3), (1, 4)]
    with pytest.raises(CalibrationError, match="different shapes cannot share a batch"):
        list(sample_batches(files, 2))


def test_a_damaged_sample_is_named(tmp_path: Path) -> None:
    path = save_sample({"x": A}, tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CalibrationError) as caught:
        load_sample(path)
    assert caught.value.where == str(path)


def test_names_of_samples_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / LABELS).write_bytes(b'{"00000.safetensors": "\xff"}')
    with pytest.raises(CalibrationError, match="cannot be read"):
        sample_labels(tmp_path)
