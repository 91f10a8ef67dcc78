"""RAR checkpoints: the configuration they imply, strict loading, what is refused and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.read import read_all
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.export.checkpoint.strict import split_parts
from arvg_trt.families.base import Variant
from arvg_trt.families.rar.checkpoint import infer_rar_config, load_rar
from arvg_trt.families.rar.config import DEMO, RarConfig, sampling_of
from arvg_trt.families.rar.model import RarTransformer
from arvg_trt.families.rar.variants import VARIANTS
from arvg_trt.families.variants import check_config, find_model

from ..var.models import SMALL as SMALL_VAR
from ..var.models import random_var
from .models import FILES, SMALL, random_maskgit, random_rar, write_checkpoint

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return dict(random_rar().state_dict())


@pytest.mark.parametrize("entry", VARIANTS, ids=lambda e: e.name)
def test_a_variant_has_the_parameters_it_says_and_is_inferred(entry: Variant) -> None:
    assert isinstance(entry.config, RarConfig)
    with torch.device("meta"):
        model = RarTransformer(entry.config)
    assert sum(p.numel() for p in model.parameters()) == entry.parameters
    assert model.state_dict()["pos_embed"].shape[1] == entry.config.length + 1024
    assert model.state_dict()["timesteps_embeddings"].shape[1] == entry.config.length + 100
    found = infer_rar_config(model.state_dict(), "here")
    assert found == entry.config
    check_config(entry, found, "here")


def test_the_keys_are_the_official_ones() -> None:
    block = {
        f"{part}.{kind}"
        for part in (
            "norm1", "norm2", "attn.qkv", "attn.q_norm", "attn.k_norm", "attn.proj", "mlp.fc1",
            "mlp.fc2", "adaLN_modulation.1",
        )
        for kind in ("weight", "bias")
    }  # fmt: skip
    outside = {
        "cls_token", "embeddings.weight", "pos_embed", "target_aware_pos_embed",
        "timesteps_embeddings", "adaln_before_head.adaLN_modulation.1.weight",
        "adaln_before_head.adaLN_modulation.1.bias", "lm_head.weight", "lm_head.bias",
    }  # fmt: skip
    own = {f"blocks.{i}.{k}" for i in range(SMALL.depth) for k in block}
    assert RarTransformer(SMALL).state_dict().keys() == outside | own


def test_published_sampling_goes_with_the_size() -> None:
    found = [sampling_of(entry.config) for entry in VARIANTS]  # type: ignore[arg-type]
    assert [(s.cfg, s.cfg_power, s.temperature) for s in found] == [
        (16.0, 2.75, 1.0),
        (15.5, 2.5, 1.02),
        (6.9, 1.5, 1.02),
        (8.0, 1.2, 1.02),
        (4.0, 0.0, 1.0),  # the mini's: as of any size that was not published
    ]
    assert sampling_of(SMALL) == DEMO


@pytest.mark.parametrize("kind", ["bin", "safetensors", "wrapped"])
def test_every_file_form_loads_the_same_model(kind: str, tmp_path: Path, tensors: Tensors) -> None:
    tokenizer = dict(random_maskgit().state_dict())
    if kind == "safetensors":
        for name, part in zip(FILES, (tensors, tokenizer), strict=True):
            save_file(part, tmp_path / Path(name).with_suffix(".safetensors"))
    else:
        whole = {"model": tensors} if kind == "wrapped" else tensors
        torch.save(whole, tmp_path / FILES[0])
        torch.save(tokenizer, tmp_path / FILES[1])
    paths = resolve_checkpoint(str(tmp_path), find_model("rar").files)
    transformer, rest = split_parts(read_all(paths))
    assert rest.keys() == tokenizer.keys()
    found = load_rar(transformer, str(tmp_path)).state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[k], tensors[k]) for k in tensors)


def without(name: str) -> Callable[[Tensors], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


QKV = "blocks.1.attn.qkv.weight"
NORM = "blocks.0.attn.q_norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(QKV), f"missing {QKV}"),
        (without("cls_token"), "missing cls_token"),
        (without("lm_head.weight"), r"is not a RAR transformer: no lm_head\.weight"),
        (put("blocks.1.attn.extra", 1), "unexpected blocks.1.attn.extra"),
        (put(QKV, 95, 32), rf"{QKV} has shape \[95, 32\], not \[96, 32\]"),
        (put("pos_embed", 1, 1280, 32), r"pos_embed has shape \[1, 1280, 32\], not \[1, 1040, 32"),
        (put("timesteps_embeddings", 1, 117, 32), "images of 17 tokens, not a square"),
        (put("timesteps_embeddings", 1, 100, 32), "has length 0 below 1"),
        (put("embeddings.weight", 50, 32), "has num_classes 0 below 1"),
        (put(NORM, 7), "width 32, not a multiple of heads of 7"),
        (put(NORM, 0), "width 32, not a multiple of heads of 0"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_key(
    change: Callable[[Tensors], None], message: str, tensors: Tensors
) -> None:
    state = dict(tensors)
    change(state)
    with pytest.raises(ExportError, match=message) as caught:
        load_rar(state, "rar_b.bin")
    assert str(caught.value).startswith("rar_b.bin: ")
    assert "\n" not in str(caught.value)


def test_another_family_is_refused() -> None:
    with pytest.raises(ExportError, match=r"is not a RAR transformer: no embeddings\.weight"):
        load_rar(dict(random_var(SMALL_VAR).state_dict()), "var_d16.pth")


def test_another_size_is_named() -> None:
    with pytest.raises(ExportError, match=r"is not rar-b: width is 1024, not 768.*it is a rar-l"):
        check_config(find_model("rar-b"), find_model("rar-l").config, "here")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"is not rar-b, but of another family"):
        check_config(find_model("rar-b"), find_model("var-d16").config, "here")  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [0, -1])
def test_sizes_below_one_are_refused(depth: int) -> None:
    with pytest.raises(ExportError, match=f"depth {depth} below 1"):
        replace(SMALL, depth=depth)


class Payload:
    """A pickle that writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("number", [0, 1])
def test_a_payload_in_either_file_is_named_and_does_not_run(
    number: int, tmp_path: Path, tensors: Tensors
) -> None:
    parts = [tensors, dict(random_maskgit().state_dict())]
    trap = tmp_path / "ran"
    parts[number] = parts[number] | {"extra": Payload(trap)}  # type: ignore[dict-item]
    folder = write_checkpoint(tmp_path / "checkpoint", *parts)
    paths = resolve_checkpoint(str(folder), find_model("rar").files)
    with pytest.raises(ExportError, match=r"its pickle asks for \w") as caught:
        read_all(paths)
    assert FILES[number] in str(caught.value)
    assert not trap.exists()


def cache_file(cache: Path, repo: str, name: str) -> Path:
    """A file as the Hub's cache holds it."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    (snapshot / name).write_bytes(b"x")
    return snapshot / name


def test_the_tokenizer_comes_from_its_own_repository(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    entry = find_model("rar-b")
    wanted = [
        cache_file(empty_cache, repo, name)
        for repo, name in zip(("yucornetto/RAR", "fun-research/TiTok"), FILES, strict=True)
    ]
    assert entry.hub is not None
    assert resolve_checkpoint(entry.hub, entry.files, entry.elsewhere) == wanted
