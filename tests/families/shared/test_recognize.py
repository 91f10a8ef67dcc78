"""A checkpoint of another model is refused by what it holds, and checked without its values."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import SMALL, read_all
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.base import Exporter
from arvg_trt.families.shared.job import ExportJob
from arvg_trt.families.shared.recognize import recognize
from arvg_trt.families.variants import MODELS, find_model
from arvg_trt.runtime.families import find_family
from arvg_trt.samples.images import ImageSource
from arvg_trt.workspace.stage import SilentReporter

HELD = {
    "cosmos-mini-di8x8": {"cosmos-mini-di8x8": "a Cosmos tokenizer"},
    "gsq-mini": {"gsq-mini": "a GSQ tokenizer"},
    "llamagen-mini": {
        "llamagen-mini": "a LlamaGen transformer",
        "llamagen-vq": "a LlamaGen VQ tokenizer",
    },
    "mar-mini": {"mar-mini": "a MAR transformer", "kl-16": "a KL autoencoder"},
    "par-mini": {"par-mini": "a PAR transformer", "llamagen-vq": "a LlamaGen VQ tokenizer"},
    "rar-mini": {"rar-mini": "a RAR transformer", "maskgit-vq": "a MaskGIT-VQ tokenizer"},
    "var-mini": {"var-mini": "a VAR transformer"},  # its VQVAE's scales are no published ones
}


def job_of(model: str, folder: Path) -> ExportJob:
    entry = find_model(model)
    paths = resolve_checkpoint(str(folder), entry.files, entry.elsewhere, entry.published)
    return ExportJob(entry, str(folder), tuple(paths), ImageSource(()), SilentReporter())


def exporter_of(model: str) -> Exporter:
    exporter: Exporter = find_family(find_model(model).family).load_exporter()
    return exporter


def check(model: str, folder: Path) -> None:
    exporter_of(model).check(replace(job_of(model, folder), shapes_only=True))


def test_every_shipped_model_is_recognized_and_fits() -> None:
    assert set(HELD) == {folder.name for folder in MODELS.iterdir() if folder.is_dir()}
    for name, held in HELD.items():
        assert recognize(job_of(name, MODELS / name)) == held, name
        check(name, MODELS / name)


@pytest.mark.parametrize(
    ("asked", "given", "said"),
    [
        ("var-d16", "cosmos-mini-di8x8", "holds a Cosmos tokenizer, not a VAR transformer"),
        ("mar-b", "gsq-mini", "holds a GSQ tokenizer, not a MAR transformer"),
        ("cosmos-di8x8", "gsq-mini", "holds a GSQ tokenizer, not a Cosmos tokenizer"),
        ("gsq-mini", "cosmos-mini-di8x8", "holds a Cosmos tokenizer, not a GSQ tokenizer"),
        ("var-vqvae", "cosmos-mini-di8x8", "holds a Cosmos tokenizer, not a VAR VQVAE"),
        (
            "rar-b",
            "par-mini",
            "holds a PAR transformer and a LlamaGen VQ tokenizer, not a RAR transformer",
        ),
    ],
)
def test_another_model_is_refused_by_what_it_holds(asked: str, given: str, said: str) -> None:
    with pytest.raises(ExportError) as caught:
        check(asked, MODELS / given)
    assert caught.value.what == said
    assert caught.value.where == str(MODELS / given)
    assert f"export it as {given}, or name a " in str(caught.value.do)


def test_another_size_is_refused_by_its_size() -> None:
    with pytest.raises(ExportError, match=r"is not var-d16: depth is 6, not 16.*it is a var-mini"):
        check("var-d16", MODELS / "var-mini")


def edited(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Return a copy of rar-mini whose transformer is changed."""
    folder = tmp_path / "rar"
    shutil.copytree(MODELS / "rar-mini", folder)
    tensors = load_file(folder / "rar.safetensors")
    change(tensors)
    save_file(tensors, folder / "rar.safetensors")
    return folder


def test_a_check_names_keys_and_shapes(tmp_path: Path) -> None:
    key = "lm_head.weight"
    without = edited(tmp_path / "a", lambda tensors: tensors.pop("lm_head.bias"))
    with pytest.raises(ExportError, match=r"missing lm_head\.bias"):
        check("rar-mini", without)
    wide = edited(
        tmp_path / "b",
        lambda tensors: tensors.update({key: torch.zeros(tensors[key].shape[0], 7)}),
    )
    with pytest.raises(ExportError, match=r"lm_head\.weight has shape"):
        check("rar-mini", wide)


def test_values_of_large_tensors_are_not_read(tmp_path: Path) -> None:
    """A NaN in one passes the check, and the export, which reads all, refuses it."""

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        large = next(t for t in tensors.values() if t.numel() > SMALL)
        large.view(-1)[0] = float("nan")

    folder = edited(tmp_path, spoil)
    check("rar-mini", folder)
    with pytest.raises(ExportError, match="NaN or infinity"):
        job_of("rar-mini", folder).read()
    read = read_all([folder / "rar.safetensors"], shapes_only=True)
    assert {t.is_meta for t in read.values() if t.numel() > SMALL} == {True}
    assert not any(t.is_meta for t in read.values() if t.numel() <= SMALL)
