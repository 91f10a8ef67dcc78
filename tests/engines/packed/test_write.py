"""A folder of graphs in its packed form: what it takes, and what it expands to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from arvg_trt.engines.packed.regions import find_regions
from arvg_trt.engines.packed.write import known_weights, pack_folder
from arvg_trt.errors import WorkspaceError
from arvg_trt.runtime.packed.expand import expand_folder, untold
from arvg_trt.runtime.packed.layout import INDEX_FILE, WEIGHTS_FILE, PackedIndex, read_index
from arvg_trt.runtime.sessions.open import fast_session

from .folders import SIDE, contents, linears, quantized_folder


def packed(folder: Path, output: Path) -> PackedIndex:
    """Pack a folder, and see that it expands to the same bytes."""
    output.mkdir()
    index, sizes = pack_folder(folder, output, known_weights(folder))
    assert read_index(output) == index
    assert sizes.few_bits + sizes.high_precision + sizes.graphs == index.bytes
    assert (output / WEIGHTS_FILE).stat().st_size == index.bytes
    assert (output / INDEX_FILE).stat().st_size == sizes.index
    again = output / "again"
    again.mkdir()
    expand_folder(output, index, again, untold)
    assert contents(again, index) == contents(folder, index)
    return index


def test_a_folder_takes_the_bits_of_its_weights(tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path / "ws")
    output = tmp_path / "packed"
    output.mkdir()
    index, sizes = pack_folder(folder, output, known_weights(folder))
    assert [file.path for file in index.files] == ["first.onnx", "second.onnx", "model.onnx.data"]
    square = SIDE * SIDE
    assert sizes.few_bits == (square // 2 + 15) + (square // 2 + 8 * SIDE)
    assert sizes.high_precision == 4 * square + 2 * square  # float32, and what float16 holds
    assert index.expanded_bytes > 3 * index.bytes / 2


def test_it_expands_to_the_same_bytes_and_graphs(tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path / "ws")
    packed(folder, tmp_path / "packed")
    x = {"x": np.ones((1, SIDE), np.float32)}
    for name in ("first.onnx", "second.onnx"):
        wanted = fast_session(folder / name).run(x)
        found = fast_session(tmp_path / "packed" / "again" / name).run(x)
        assert wanted.keys() == found.keys()
        assert all(np.array_equal(wanted[key], found[key]) for key in wanted)


def test_a_folder_with_engines_packs_to_the_bytes_of_its_graphs_alone(tmp_path: Path) -> None:
    alone, engines = (quantized_folder(tmp_path / name) for name in ("alone", "engines"))
    onnx.save(linears(("w", np.ones((SIDE, SIDE), np.float32))), engines / "first_ctx.onnx")
    (engines / "first.engine").write_bytes(b"plan")
    index = packed(engines, tmp_path / "b")
    assert index == packed(alone, tmp_path / "a")
    assert "first_ctx.onnx" not in {file.path for file in index.files}


def test_the_same_folder_packs_to_the_same_bytes(tmp_path: Path) -> None:
    folder = quantized_folder(tmp_path / "ws")
    packed(folder, tmp_path / "a")
    packed(folder, tmp_path / "b")
    for name in (INDEX_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def saved(folder: Path, data: bytes, places: dict[str, tuple[int, int]]) -> Path:
    """Write a graph whose float weights lie at (offset, length) of a file with these bytes."""
    folder.mkdir()
    shapes = {name: (length // 4 // SIDE, SIDE) for name, (_, length) in places.items()}
    model = linears(*((name, np.zeros(shape, np.float32)) for name, shape in shapes.items()))
    for tensor in model.graph.initializer:
        offset, length = places[tensor.name]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "w.bin").write_bytes(data)
    return folder


SQUARE = 4 * SIDE * SIDE
NOISE = np.random.default_rng(0).bytes(4 * SQUARE)


def test_bytes_that_no_tensor_reads_are_kept(tmp_path: Path) -> None:
    data = b"in front" + NOISE[:SQUARE] + bytes(100) + b"between" + NOISE[:SQUARE] + b"behind"
    places = {"a": (8, SQUARE), "b": (8 + SQUARE + 107, SQUARE)}
    packed(saved(tmp_path / "ws", data, places), tmp_path / "packed")


def test_tensors_that_share_bytes_are_one_region(tmp_path: Path) -> None:
    places = {"a": (0, SQUARE), "b": (SQUARE // 2, SQUARE), "c": (0, SQUARE)}
    folder = saved(tmp_path / "ws", NOISE[: 2 * SQUARE], places)
    (region,) = find_regions(folder)["w.bin"]
    assert (region.offset, region.bytes, region.names) == (0, SQUARE * 3 // 2, ())
    packed(folder, tmp_path / "packed")


def test_an_empty_file_and_zeros_at_the_end_are_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path / "ws", NOISE[:SQUARE] + bytes(5000), {"a": (0, SQUARE)})
    index = packed(folder, tmp_path / "packed")
    assert index.files[-1].bytes == SQUARE + 5000


def test_a_folder_without_files_of_weights_packs_its_graphs(tmp_path: Path) -> None:
    (tmp_path / "ws").mkdir()
    model = linears(("w", np.ones((SIDE, SIDE), np.float32)))
    (tmp_path / "ws" / "model.onnx").write_bytes(model.SerializeToString())
    index = packed(tmp_path / "ws", tmp_path / "packed")
    assert [file.path for file in index.files] == ["model.onnx"]


def test_weights_in_another_folder_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "ws", NOISE[:SQUARE], {"a": (0, SQUARE)})
    (folder / "more").mkdir()
    (folder / "w.bin").rename(folder / "more" / "w.bin")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    (entry,) = (e for e in model.graph.initializer[0].external_data if e.key == "location")
    entry.value = "more/w.bin"
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(WorkspaceError, match=r"cannot be packed: .*more/w\.bin' has folders"):
        pack_folder(folder, tmp_path, {})


def test_weights_that_are_too_short_are_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "ws", NOISE[: SQUARE - 1], {"a": (0, SQUARE)})
    with pytest.raises(WorkspaceError, match="too short"):
        pack_folder(folder, tmp_path, {})
