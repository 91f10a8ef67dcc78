"""A folder that is not the wanted one leads to the one to name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arvg_trt.workspace.files import digest_files, encode_json
from arvg_trt.workspace.lead import folders_of_graphs, lead_from
from arvg_trt.workspace.manifest import MANIFEST, Manifest
from arvg_trt.workspace.verify import PACKED_FILE
from arvg_trt.workspace.workspace import WORKSPACE_FILE

from ..command_line import arvg, assert_refused


def made(root: Path, *parts: str, graph: bool = True, **fields: Any) -> Path:
    """A folder as a stage leaves it, as far as a lead reads it."""
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True)
    if graph:
        (folder / "encoder.onnx").write_bytes(b"")
    outputs = digest_files(folder, folder.iterdir())
    values = {"stage": parts[0], "inputs": {}, "options": {}, "versions": {}, **fields}
    (folder / MANIFEST).write_bytes(encode_json(Manifest(**values, outputs=outputs)))
    return folder


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    root = tmp_path / "ws"
    made(root, "export", options={"model": "cosmos-mini-di8x8"}, results={"tokenizer": {}})
    made(root, "engines", "int8", "onnxruntime")
    made(root, "calibrate", graph=False)
    (root / WORKSPACE_FILE).write_text("{}")
    return root


@pytest.mark.parametrize("place", [".", "engines", "engines/int8", "engines/int8/onnxruntime"])
def test_generate_says_that_it_is_a_tokenizer_and_what_takes_it(
    tokenizer: Path, tmp_path: Path, place: str
) -> None:
    outcome = arvg("generate", tokenizer / place, "--labels", 3, "-o", tmp_path / "images")
    if place.endswith("onnxruntime"):
        lead = lead_from(tokenizer / place, "generator")
        assert "cosmos-mini-di8x8" in lead.what  # the command verifies the folder first
        return
    words = ("cosmos-mini-di8x8, an image tokenizer, not a", "`arvg-trt encode` and `decode`")
    assert_refused(outcome, 9, f"{tokenizer / place}: holds", *words)
    assert "export/export" not in outcome.err


def test_folders_above_the_graphs_name_those_below(tokenizer: Path) -> None:
    engine = str(tokenizer / "engines/int8/onnxruntime")
    for place in ("engines", "engines/int8"):
        assert lead_from(tokenizer / place, "tokenizer").do == f"name {engine}"
    assert str(tokenizer / "export") in lead_from(tokenizer.parent, "tokenizer").do
    assert lead_from(tokenizer / "calibrate", "tokenizer").do.startswith(f"name {tokenizer}, or")


def test_own_graphs_a_workspace_without_export_and_any_folder(tmp_path: Path) -> None:
    options = {"model": "onnx", "graphs": ["net"]}
    made(tmp_path / "own", "export", options=options, results={"graphs": []})
    (tmp_path / "own" / WORKSPACE_FILE).write_text("{}")
    assert (
        "holds net, an ONNX model of your own, not" in lead_from(tmp_path / "own", "generator").what
    )
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / WORKSPACE_FILE).write_text("{}")
    assert "arvg-trt export MODEL" in lead_from(tmp_path / "new", "generator").do
    (tmp_path / "other").mkdir()
    assert "name a workspace" in lead_from(tmp_path / "other", "tokenizer").do


def test_what_opens_on_every_machine_is_named_first(tmp_path: Path) -> None:
    """A bundle that was unpacked, with weights left packed: those folders have no graph as such."""
    made(tmp_path, "kit")
    made(tmp_path, "engines", "int8", "rtx-sm86")
    made(tmp_path, "engines", "int8", "tensorrt-sm87")
    packed = made(tmp_path, "engines", "int8", "onnxruntime", graph=False)
    (packed / PACKED_FILE).write_text("{}")
    found = folders_of_graphs(tmp_path)
    names = ["onnxruntime", "kit", "rtx-sm86", "tensorrt-sm87"]
    assert [Path(each).name for each in found] == names
    assert f"the first 3: {packed}, " in lead_from(tmp_path, "tokenizer").do
