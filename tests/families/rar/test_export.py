"""A tiny RAR's checkpoint through the stages, and checkpoints that do not make a RAR."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.rar.export import RarExporter
from arvg_trt.families.shared.job import ExportJob
from arvg_trt.families.variants import find_model
from arvg_trt.runtime.generator import Generator
from arvg_trt.samples.images import open_source
from arvg_trt.workspace.manifest import MANIFEST
from arvg_trt.workspace.stage import SilentReporter

from ...command_line import arvg, assert_refused, leftovers
from ..var.models import SMALL as SMALL_VAR
from ..var.models import random_var
from .models import FILES, SMALL, TOKENIZER, TinyRar, random_maskgit, random_rar, write_checkpoint

Tensors = dict[str, Tensor]


def transformer() -> Tensors:
    return dict(random_rar().state_dict())


def tokenizer(vocab_size: int = TOKENIZER.vocab_size) -> Tensors:
    return dict(random_maskgit(replace(TOKENIZER, vocab_size=vocab_size)).state_dict())


def job(name: str, checkpoint: Path) -> ExportJob:
    entry = find_model(name)
    paths = resolve_checkpoint(str(checkpoint), entry.files)
    source = open_source("skimage:astronaut")
    return ExportJob(entry, str(checkpoint), tuple(paths), source, SilentReporter())


def test_every_graph_is_there_and_one_file_of_weights(tiny_rar: TinyRar) -> None:
    graphs = ("encoder", "decoder", "condition", "step", "full")
    wanted = {f"{name}.onnx" for name in graphs}
    wanted |= {"model.onnx.data", "sites.json", "generator.json", MANIFEST}
    assert {p.name for p in tiny_rar.folder.iterdir()} == wanted


def test_the_manifest_records_parity_and_parameters(tiny_rar: TinyRar) -> None:
    results = json.loads((tiny_rar.folder / MANIFEST).read_text())["results"]
    found = results["parity"]["graphs"]
    steps = [(d["tokens"], d["past"]) for d in found if d["graph"] == "step" and d["tokens"]]
    assert steps == [(2, 0), (1, 2), (1, 3), (12, 4), (1, 16)]
    graphs = {d["graph"] for d in found}
    assert graphs == {"encoder", "decoder", "condition", "step", "full"}
    assert all(0 <= d["mean"] <= d["max"] < 1e-4 for d in found)
    assert results["parity"]["encoder"]["tokens"] == 2 * SMALL.length
    assert results["parameters_of"] == {
        "transformer": sum(p.numel() for p in tiny_rar.transformer.parameters()),
        "tokenizer": sum(p.numel() for p in tiny_rar.tokenizer.parameters()),
    }


def test_generator_json_tells_the_runtime_what_it_needs(tiny_rar: TinyRar) -> None:
    assert json.loads((tiny_rar.folder / "generator.json").read_text()) == {
        "schema": "arvg-trt/generator/v1",
        "family": "rar",
        "side": 4,
        "num_classes": 5,
        "vocab_size": 48,
        "depth": 2,
        "width": 32,
        "heads": 4,
        "head_dim": 8,
        "image_size": 8,
        "defaults": {"cfg": 4.0, "cfg_power": 0.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
        "kv_type": "float32",
    }


def test_the_workspace_generates_images(tiny_rar: TinyRar, tmp_path: Path) -> None:
    places = ("-o", tmp_path / "out", "--npz", tmp_path / "x.npz", "--tokens", tmp_path / "t.npz")
    options = ("--batch-size", 2, "--temperature", 1.1, "--cfg-power", 2, "--cfg", 3)
    outcome = arvg("generate", tiny_rar.workspace, "--labels", "0-4", *options, *places)
    assert outcome.code == 0, outcome
    images, tokens = np.load(tmp_path / "x.npz")["arr_0"], np.load(tmp_path / "t.npz")["tokens"]
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    wanted = Generator.open(tiny_rar.workspace).generate(
        range(5), temperature=1.1, cfg_power=2.0, cfg=3.0
    )
    assert np.array_equal(tokens, wanted.tokens) and np.array_equal(images, wanted.images)
    assert len(list((tmp_path / "out").iterdir())) == 6
    greedy = arvg("generate", tiny_rar.workspace, "--labels", 1, "--greedy", "--json", *places[-2:])
    assert json.loads(greedy.out)["sampling"]["cfg_power"] == 0.0
    assert not np.array_equal(np.load(tmp_path / "t.npz")["tokens"], tokens[1:2])


def test_pictures_are_encoded_and_decoded(tiny_rar: TinyRar, tmp_path: Path) -> None:
    picture = tmp_path / "out" / "00000_0.png"
    arvg("generate", tiny_rar.workspace, "--labels", 0, "-o", picture.parent)
    tokens = tmp_path / "t.npz"
    assert arvg("encode", tiny_rar.folder, picture, "-o", tokens).code == 0
    assert np.load(tokens)["tokens_0"].shape == (1, 4, 4)
    outcome = arvg("decode", tiny_rar.folder, tokens, "-o", tmp_path / "back")
    assert outcome.out == f"{tmp_path / 'back' / '0.png'}\n"


def test_an_option_out_of_range_is_refused(tiny_rar: TinyRar, tmp_path: Path) -> None:
    outcome = arvg(
        "generate", tiny_rar.workspace, "--labels", 0, "--temperature", 0, "-o", tmp_path / "out"
    )
    assert_refused(outcome, 10, "temperature is 0.0, not above 0")
    assert list(tmp_path.iterdir()) == []


def test_models_lists_both_repositories() -> None:
    rows = {row["name"]: row for row in json.loads(arvg("models", "--json").out)["models"]}
    assert {"rar-b", "rar-l", "rar-xl", "rar-xxl"} <= rows.keys()
    assert rows["rar-b"]["files"][0] == list(FILES)
    assert rows["rar-b"]["checkpoint"] == "yucornetto/RAR, fun-research/TiTok"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: write_checkpoint(f, transformer(), None), ("has no tokenizer", FILES[1])),
        (
            lambda f: write_checkpoint(f, None, tokenizer()),
            ("has a tokenizer and no transformer",),
        ),
        (
            lambda f: write_checkpoint(
                f, transformer() | {"lm_head.bias": torch.zeros(47)}, tokenizer()
            ),
            ("lm_head.bias has shape [47], not [48]",),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), tokenizer(40)),
            ("its tokenizer is another model's: vocab_size is 48 in the transformer, 40 in it",),
        ),
        (
            lambda f: write_checkpoint(f, dict(random_var(SMALL_VAR).state_dict()), tokenizer()),
            ("NaN or infinity in attn_bias_for_masking",),
        ),
        (
            lambda f: write_checkpoint(f, {"norm.weight": torch.zeros(3)}, tokenizer()),
            ("is not a RAR transformer",),
        ),
    ],
    ids=["no tokenizer", "no transformer", "misshapen", "another codebook", "a VAR", "neither"],
)
def test_a_checkpoint_that_is_no_rar_is_refused(
    make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        RarExporter().load(job("rar", make(tmp_path / "checkpoint")))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variant_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), tokenizer())
    with pytest.raises(ExportError, match=r"is not rar-b: .*depth is 2, not 24"):
        RarExporter().load(job("rar-b", checkpoint))


def test_a_refused_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), None)
    outcome = arvg("export", "rar", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "has no tokenizer")
    assert not (tmp_path / "ws").exists() and not leftovers(tmp_path)


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    outcome = arvg("export", "rar-b", tmp_path / "ws", "--static-batch", 2)
    assert_refused(outcome, 4, "a cache that grows by one token a step", "leave out --static-batch")
    assert not (tmp_path / "ws").exists()


def test_a_folder_of_several_sizes_needs_the_variants_name(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), tokenizer())
    (checkpoint / "rar_l.bin").touch()
    outcome = arvg("export", "rar", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "holds several checkpoints: rar_b, rar_l")
