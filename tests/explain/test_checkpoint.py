"""A plan is of a checkpoint that the export takes: another model's files are refused at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from arvg_trt.families.var.config import VarConfig
from arvg_trt.families.var.model import VarTransformer, official_levels
from arvg_trt.families.var_vqvae.config import VarVqvaeConfig
from arvg_trt.families.var_vqvae.model import VarVqvae
from arvg_trt.families.variants import MODELS, find_model
from arvg_trt.workspace.workspace import Workspace

from ..command_line import arvg, assert_refused
from ..one_process import exporting_here


def sparse_var(folder: Path) -> Path:
    """Write a VAR-d16 whose 1.7 GB of weights are holes: names, shapes and levels are there."""
    config = find_model("var-d16").config
    assert isinstance(config, VarConfig)
    with torch.device("meta"):
        models = {"var": VarTransformer(config), "vae": VarVqvae(VarVqvaeConfig())}
    folder.mkdir()
    for name, model in models.items():
        tensors: dict[str, torch.Tensor] = model.state_dict()
        levels = {"lvl_1L": official_levels(config)} if name == "var" else {}
        write_sparse(folder / f"{name}.safetensors", tensors, levels)
    return folder


def write_sparse(
    path: Path, tensors: dict[str, torch.Tensor], values: dict[str, torch.Tensor]
) -> None:
    """Write a safetensors file of these shapes, with the values of a few tensors alone."""
    names = {torch.float32: "F32", torch.int64: "I64"}
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        begin = file.tell()
        file.truncate(begin + end)
        for name, tensor in values.items():
            file.seek(begin + header[name]["data_offsets"][0])
            file.write(tensor.numpy().tobytes())


@pytest.mark.parametrize("there", [False, True])
def test_another_model_of_the_family_s_kind_is_refused(tmp_path: Path, there: bool) -> None:
    """Its files have the suffix and the size; the plan of a day of work would have been printed."""
    if there:
        with Workspace(tmp_path / "w"):
            pass
    place = ("--workspace", tmp_path / "w")
    words = ("var-w8a8", "--model", "var-d16", "--checkpoint", MODELS / "cosmos-mini-di8x8", *place)
    said = "holds a Cosmos tokenizer, not a VAR transformer (export it as cosmos-mini-di8x8, or"
    assert_refused(arvg("run", *words, "--dry-run"), 4, said, str(MODELS / "cosmos-mini-di8x8"))
    with exporting_here():
        assert_refused(arvg("run", *words), 4, said)
        words = ("var-d16", tmp_path / "w", "--checkpoint", MODELS / "cosmos-mini-di8x8")
        assert_refused(arvg("export", *words), 4, said)


def test_why_says_that_the_checkpoint_is_another_model_s(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    shown = arvg("recipes", "var-w8a8", "--model", "var-d16", "--checkpoint", MODELS / "gsq-mini")
    recipe.write_text(shown.out)
    with Workspace(tmp_path / "w"):
        pass
    outcome = arvg("why", "export", tmp_path / "w", "--recipe", recipe)
    assert "never run" in outcome.out
    assert "holds a GSQ tokenizer, not a VAR transformer" in outcome.out


def test_a_complete_checkpoint_is_planned_without_reading_its_weights(tmp_path: Path) -> None:
    folder = sparse_var(tmp_path / "var-d16")
    assert sum(p.stat().st_size for p in folder.iterdir()) > 1.6e9
    words = ("var-w8a8", "--model", "var-d16", "--checkpoint", folder, "--dry-run")
    outcome = arvg("run", *words, "--workspace", tmp_path / "w")
    assert outcome.code == 0, outcome.err
    assert "var-d16: " in outcome.out
