"""Snapshots of trainers: which weights are taken, under which names, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import WeightChoice, read_all, read_tensors
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.export.checkpoint.wrappers import Weights

Tensors = dict[str, Tensor]


def state(value: float = 1.0) -> Tensors:
    return {"a.weight": torch.full((2, 3), value), "b": torch.full((1,), value)}


def first(found: Tensors) -> float:
    return float(found["b"])


@pytest.mark.parametrize("average", ["ema", "ema_model", "model_ema"])
@pytest.mark.parametrize("last", ["model", "state_dict", "module"])
def test_the_averaged_weights_are_taken_and_both_are_named(
    average: str, last: str, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot.pt"
    torch.save({last: state(7), average: state(1), "optimizer": {"state": {}}}, path)
    said: list[str] = []
    assert first(read_all([path], choice=WeightChoice(say=said.append))) == 1
    assert said == [
        f"snapshot.pt: takes the averaged weights, {average}, not {last}; "
        "--weights model for the latter"
    ]


@pytest.mark.parametrize(("weights", "value"), [("ema", 1), ("model", 7)])
def test_either_weights_can_be_asked_for(weights: Weights, value: float, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pt"
    torch.save({"model": state(7), "ema": {"module": state(1), "updates": 3}}, path)
    said: list[str] = []
    found = read_all([path], choice=WeightChoice(weights, asked=True, say=said.append))
    assert first(found) == value
    assert len(said) == 1 and "--weights" not in said[0]


def test_a_family_may_evaluate_the_last_weights(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pt"
    torch.save({"model": state(7), "ema": state(1)}, path)
    said: list[str] = []
    assert first(read_all([path], choice=WeightChoice("model", say=said.append))) == 7
    assert said[0].endswith("not the averaged weights, ema; --weights ema for the latter")


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_a_choice_that_no_file_leaves_is_refused(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "plain.pt"
    torch.save({"model": state()}, path)
    with pytest.raises(ExportError, match=r"no averaged weights.*leave out --weights"):
        read_all([path], choice=WeightChoice(weights, asked=True))
    said: list[str] = []
    assert first(read_all([path], choice=WeightChoice(say=said.append))) == 1
    assert not said


def test_averages_without_names_are_refused_with_a_way_on(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pt"
    torch.save({"model": state(7), "ema": {"decay": 0.9, "shadow": [torch.ones(1)]}}, path)
    with pytest.raises(ExportError, match=r"no tensors by name.*--weights model"):
        read_all([path])
    assert first(read_all([path], choice=WeightChoice("model", asked=True))) == 7


def test_a_snapshot_of_two_parts_keeps_its_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "ar-ckpt-best.pth"
    trainer = {"var_wo_ddp": state(7), "vae_local": {"encoder.x": torch.ones(1)}}
    torch.save({"trainer": trainer | {"ema": state(1)}}, path)
    found = read_all([path])
    assert first(found) == 1 and "encoder.x" in found
    found = read_all([path], choice=WeightChoice("model", asked=True))
    assert first(found) == 7 and "encoder.x" in found


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "_fsdp_wrapped_module.",
        "module.module.",
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_what_wrappers_put_before_names_is_taken_off(
    prefix: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{suffix}"
    tensors = {prefix + name: tensor for name, tensor in state().items()}
    if suffix == "pt":
        torch.save({"model": tensors}, path)
    else:
        save_file(tensors, path)
    assert read_tensors(path).keys() == state().keys()


def test_a_compiled_block_inside_is_the_block(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"blocks.0._orig_mod.fc.weight": torch.ones(1), "my_module.x": torch.ones(1)}, path)
    assert read_tensors(path).keys() == {"blocks.0.fc.weight", "my_module.x"}


def test_an_averaged_model_of_torch_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = nn.Linear(2, 2)
    torch.save(AveragedModel(model).state_dict(), path)
    assert read_tensors(path).keys() == model.state_dict().keys()


def test_names_that_become_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"module.a": torch.ones(1), "a": torch.zeros(1)}, path)
    with pytest.raises(ExportError, match="has a twice"):
        read_tensors(path)


def test_infinities_by_design_are_known_behind_a_prefix(tmp_path: Path) -> None:
    path = tmp_path / "var.pth"
    torch.save({"module.mask": torch.full((1,), -torch.inf)}, path)
    assert read_all([path], infinite=("mask",)).keys() == {"mask"}
    with pytest.raises(ExportError, match="NaN or infinity in mask"):
        read_all([path])


PAIR = (("var_d16.pth", "vae_ch160v4096z32.pth"), ("ar-ckpt-best.pth",))
TOKENIZER = {"encoder.conv_in.weight": torch.ones(1), "decoder.x": torch.ones(1)}


def write(folder: Path, **files: Tensors) -> None:
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")


def test_a_pair_of_any_names_is_told_apart_by_its_keys(tmp_path: Path) -> None:
    write(tmp_path, a_vae=TOKENIZER, mine=state())
    torch.save({"state": {"step": 3}}, tmp_path / "optimizer.bin")
    found = resolve_checkpoint(str(tmp_path), PAIR)
    assert [p.stem for p in found] == ["mine", "a_vae"]


def test_official_names_come_first(tmp_path: Path) -> None:
    for name in PAIR[0]:
        (tmp_path / name).touch()
    write(tmp_path, a_vae=TOKENIZER, mine=state())
    assert resolve_checkpoint(str(tmp_path), PAIR) == [tmp_path / name for name in PAIR[0]]


def test_files_that_make_no_pair_are_described(tmp_path: Path) -> None:
    write(tmp_path, a=state(), b=state(), vae=TOKENIZER, both=TOKENIZER | state())
    with pytest.raises(ExportError) as caught:
        resolve_checkpoint(str(tmp_path), PAIR)
    text = str(caught.value)
    assert "a.safetensors holds transformer, b.safetensors holds transformer" in text
    assert "both.safetensors holds transformer and tokenizer" in text
    assert "vae.safetensors holds tokenizer" in text
    assert "keep one transformer and one tokenizer in it" in text


def test_a_snapshot_among_other_files_is_found(tmp_path: Path) -> None:
    write(tmp_path, both=TOKENIZER | state())
    torch.save({"state": {"step": 3}}, tmp_path / "optimizer.bin")
    assert resolve_checkpoint(str(tmp_path), PAIR) == [tmp_path / "both.safetensors"]


def test_several_files_of_one_model_are_refused(tmp_path: Path) -> None:
    write(tmp_path, a=TOKENIZER, b=TOKENIZER)
    with pytest.raises(ExportError, match=r"has no complete checkpoint.*expected model.safetens"):
        resolve_checkpoint(str(tmp_path), (("model.safetensors",),))
