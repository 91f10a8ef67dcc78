"""A tiny PAR's checkpoint through the stages, and checkpoints that do not make a PAR."""

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
from arvg_trt.families.par.export import ParExporter, generator_spec
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.spec import Defaults
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import arvg, assert_refused, leftovers
from ..rar.models import random_maskgit, random_rar
from ..rar.test_export import job
from .models import (
    FILES,
    JSON,
    SMALL,
    TOKENIZER,
    TinyPar,
    random_llamagen,
    random_par,
    write_checkpoint,
)

Tensors = dict[str, Tensor]


def transformer() -> Tensors:
    return dict(random_par().state_dict())


def tokenizer(vocab_size: int = TOKENIZER.vocab_size) -> Tensors:
    return dict(random_llamagen(replace(TOKENIZER, vocab_size=vocab_size)).state_dict())


def test_every_graph_is_there_and_one_file_of_weights(tiny_par: TinyPar) -> None:
    wanted = {f"{name}.onnx" for name in ("encoder", "decoder", "step", "full")}
    wanted |= {"model.onnx.data", "sites.json", "generator.json", MANIFEST}
    assert {p.name for p in tiny_par.folder.iterdir()} == wanted


def test_the_manifest_records_parity_and_parameters(tiny_par: TinyPar) -> None:
    manifest = json.loads((tiny_par.folder / MANIFEST).read_text())
    assert {*FILES, "config.json"} < manifest["inputs"].keys()
    results = manifest["results"]
    found = results["parity"]["graphs"]
    steps = [(d["tokens"], d["past"]) for d in found if d["graph"] == "step" and d["tokens"]]
    assert steps == [(1, 0), (1, 1), (1, 2), (1, 3), (4, 4), (4, 8), (4, 12)]
    assert {d["graph"] for d in found} == {"encoder", "decoder", "step", "full"}
    assert all(0 <= d["mean"] <= d["max"] < 1e-4 for d in found)
    assert results["parity"]["encoder"] == {
        "tokens": 2 * SMALL.length,
        "differ": 0,
        "at_boundary": 0,
    }
    assert results["parameters_of"] == {
        "transformer": sum(p.numel() for p in tiny_par.transformer.parameters()),
        "tokenizer": sum(p.numel() for p in tiny_par.tokenizer.parameters()),
    }


def test_generator_json_tells_the_runtime_what_it_needs(tiny_par: TinyPar) -> None:
    assert json.loads((tiny_par.folder / "generator.json").read_text()) == {
        "schema": "arvg-trt/generator/v1",
        "family": "par",
        "side": 4,
        "group": 4,
        "num_classes": 5,
        "vocab_size": 48,
        "depth": 2,
        "width": 32,
        "heads": 2,
        "head_dim": 16,
        "image_size": 8,
        "defaults": {
            "cfg": 1.5,
            "top_k": 0,
            "top_p": 1.0,
            "temperature": 1.0,
            "cfg_power": None,
        },
        "kv_type": "float32",
    }


def test_config_json_may_tell_the_sampling() -> None:
    own = Defaults(cfg=3.0, top_k=20, top_p=0.9)
    assert generator_spec(SMALL, TOKENIZER, sampling=own).defaults == own


def test_the_sites_of_the_tokenizer_leave_out_its_ends(tiny_par: TinyPar) -> None:
    found = json.loads((tiny_par.folder / "sites.json").read_text())["sites"]
    left_out = {s["name"] for s in found if s["excluded"] and s["graph"] in ("encoder", "decoder")}
    ends = {"encoder.conv_in", "quant_conv", "post_quant_conv", "decoder.conv_out", "nearest"}
    assert {name for name in left_out if "bmm" not in name} == ends


def test_the_workspace_generates_images(tiny_par: TinyPar, tmp_path: Path) -> None:
    places = ("-o", tmp_path / "out", "--npz", tmp_path / "x.npz", "--tokens", tmp_path / "t.npz")
    options = ("--batch-size", 2, "--temperature", 1.1, "--cfg", 3)
    outcome = arvg("generate", tiny_par.workspace, "--labels", "0-4", *options, *places)
    assert outcome.code == 0, outcome
    images, tokens = np.load(tmp_path / "x.npz")["arr_0"], np.load(tmp_path / "t.npz")["tokens"]
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    wanted = Generator.open(tiny_par.workspace).generate(range(5), temperature=1.1, cfg=3.0)
    assert np.array_equal(tokens, wanted.tokens) and np.array_equal(images, wanted.images)
    assert len(list((tmp_path / "out").iterdir())) == 6
    greedy = arvg("generate", tiny_par.workspace, "--labels", 1, "--greedy", "--json", *places[-2:])
    assert json.loads(greedy.out)["sampling"]["cfg"] == 1.5
    assert not np.array_equal(np.load(tmp_path / "t.npz")["tokens"], tokens[1:2])


def test_pictures_are_encoded_and_decoded(tiny_par: TinyPar, tmp_path: Path) -> None:
    picture = tmp_path / "out" / "00000_0.png"
    arvg("generate", tiny_par.workspace, "--labels", 0, "-o", picture.parent)
    tokens = tmp_path / "t.npz"
    assert arvg("encode", tiny_par.folder, picture, "-o", tokens).code == 0
    assert np.load(tokens)["tokens_0"].shape == (1, 4, 4)
    outcome = arvg("decode", tiny_par.folder, tokens, "-o", tmp_path / "back")
    assert outcome.out == f"{tmp_path / 'back' / '0.png'}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--labels", 0, "--temperature", 0), "temperature is 0.0, not above 0"),
        (("--labels", 5), "label out of range: 5"),
        (("--labels", 0, "--cfg-power", 1), "cfg_power is not this family's"),
    ],
)
def test_an_option_out_of_range_is_refused(
    tiny_par: TinyPar, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    outcome = arvg("generate", tiny_par.workspace, *options, "-o", tmp_path / "out")
    assert_refused(outcome, 10, message)
    assert list(tmp_path.iterdir()) == []


def test_models_lists_both_repositories() -> None:
    rows = {row["name"]: row for row in json.loads(arvg("models", "--json").out)["models"]}
    sizes = {f"par-{size}-{n}x" for size in ("l", "xl", "xxl", "3b") for n in (4, 16)}
    assert sizes <= rows.keys()
    assert rows["par-xl-4x"]["files"][0] == list(FILES)
    assert rows["par-3b-16x"]["files"][0] == ["PAR-3B-16x.pt", FILES[1]]
    assert rows["par-xl-4x"]["checkpoint"] == "Epiphqny/PAR, FoundationVision/LlamaGen"


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
                f, transformer() | {"output.weight": torch.zeros(47, 32)}, tokenizer()
            ),
            ("output.weight has shape [47, 32], not [48, 32]",),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), tokenizer(40)),
            ("its tokenizer is another model's: vocab_size is 48 in the transformer, 40 in it",),
        ),
        (
            lambda f: write_checkpoint(f, dict(random_rar().state_dict()), tokenizer()),
            ("is not a PAR transformer",),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), dict(random_maskgit().state_dict())),
            ("is not a LlamaGen VQ",),
        ),
        (
            lambda f: write_checkpoint(
                f, transformer() | {"norm.weight": torch.full((32,), torch.nan)}, tokenizer()
            ),
            ("NaN or infinity in norm.weight",),
        ),
    ],
    ids=[
        "no tokenizer",
        "no transformer",
        "misshapen",
        "another codebook",
        "a RAR",
        "a RAR's tokenizer",
        "not finite",
    ],
)
def test_a_checkpoint_that_is_no_par_is_refused(
    make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        ParExporter().load(job("par", make(tmp_path / "checkpoint")))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variant_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), tokenizer())
    with pytest.raises(ExportError, match=r"is not par-xl-4x: .*depth is 2, not 36"):
        ParExporter().load(job("par-xl-4x", checkpoint))


def test_a_config_json_that_contradicts_is_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), tokenizer())
    (checkpoint / "config.json").write_text(json.dumps(JSON | {"ar_token_num": 16}))
    outcome = arvg("export", "par", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "group is 4 in the tensors, 16 in config.json")
    assert not (tmp_path / "ws").exists() and not leftovers(tmp_path)


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    outcome = arvg("export", "par-xl-4x", tmp_path / "ws", "--static-batch", 2)
    assert_refused(outcome, 4, "grows by a few tokens a step", "leave out --static-batch")
    assert not (tmp_path / "ws").exists()


def test_a_folder_of_several_sizes_needs_the_variants_name(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), tokenizer())
    (checkpoint / "PAR-3B-4x.pt").touch()
    outcome = arvg("export", "par", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "holds several checkpoints: PAR-3B-4x, PAR-XL-4x")
