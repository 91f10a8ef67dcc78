"""A tiny LlamaGen's checkpoint through the stages, and checkpoints that do not make one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arvg_trt.errors import ExportError
from arvg_trt.families.llamagen.export import LlamagenExporter, generator_spec
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.spec import Defaults
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import arvg, assert_refused
from ..par.models import TOKENIZER, random_par
from ..par.models import random_llamagen as random_vq
from ..rar.test_export import job
from .models import FILES, SMALL, TinyLlamagen, random_llamagen, write_checkpoint

Tensors = dict[str, Tensor]


def transformer() -> Tensors:
    return dict(random_llamagen().state_dict())


def tokenizer(vocab_size: int = TOKENIZER.vocab_size) -> Tensors:
    return dict(random_vq(replace(TOKENIZER, vocab_size=vocab_size)).state_dict())


def test_every_graph_is_there_and_one_file_of_weights(tiny_llamagen: TinyLlamagen) -> None:
    wanted = {f"{name}.onnx" for name in ("encoder", "decoder", "step", "full")}
    wanted |= {"model.onnx.data", "sites.json", "generator.json", MANIFEST}
    assert {p.name for p in tiny_llamagen.folder.iterdir()} == wanted


def test_the_manifest_records_parity_and_parameters(tiny_llamagen: TinyLlamagen) -> None:
    manifest = json.loads((tiny_llamagen.folder / MANIFEST).read_text())
    assert {*FILES, "config.json"} < manifest["inputs"].keys()
    results = manifest["results"]
    found = results["parity"]["graphs"]
    steps = [(d["tokens"], d["past"]) for d in found if d["graph"] == "step" and d["tokens"]]
    assert steps == [(1, 0), (1, 1), (1, 2), (1, 8), (1, 15)]
    assert {d["graph"] for d in found} == {"encoder", "decoder", "step", "full"}
    assert all(0 <= d["mean"] <= d["max"] < 1e-4 for d in found)
    assert results["parity"]["encoder"]["tokens"] == 2 * SMALL.length
    assert results["parameters_of"] == {
        "transformer": sum(p.numel() for p in tiny_llamagen.transformer.parameters()),
        "tokenizer": sum(p.numel() for p in tiny_llamagen.tokenizer.parameters()),
    }


def test_generator_json_tells_the_runtime_what_it_needs(tiny_llamagen: TinyLlamagen) -> None:
    assert json.loads((tiny_llamagen.folder / "generator.json").read_text()) == {
        "schema": "arvg-trt/generator/v1",
        "family": "llamagen",
        "side": 4,
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


def test_a_tiny_one_goes_through_every_stage(tiny_llamagen: TinyLlamagen, tmp_path: Path) -> None:
    root = tmp_path / "ws"
    shutil.copytree(tiny_llamagen.workspace, root)
    named = ("--name", "w8a8")
    for stage in (
        ("calibrate", root, "--samples", 6, "--batch-size", 4),
        ("quantize", root, *named),
        ("build", root, *named),
        ("validate", root, *named, "--samples", 3, "--rounds", 0),
    ):
        done = arvg(*stage)
        assert done.code == 0, done
    report = json.loads((root / "validate" / "w8a8" / "report.json").read_text())
    logits = report["generation"]["qdq"]["logits"]
    assert 0 < logits["kl"] < 0.1 and logits["top1"] > 0.9
    wanted = Generator.open(root).generate(range(5), greedy=True).tokens
    for folder in (root / "quantize" / "w8a8", root / "engines" / "w8a8" / "onnxruntime"):
        tokens = tmp_path / "tokens.npz"
        done = arvg("generate", folder, "--labels", "0-4", "--greedy", "--tokens", tokens)
        assert done.code == 0, done
        assert np.mean(np.load(tokens)["tokens"] == wanted) > 0.5
    assert len(np.unique(wanted)) > 4


def test_models_lists_every_size() -> None:
    rows = {row["name"]: row for row in json.loads(arvg("models", "--json").out)["models"]}
    sizes = ("b-256", "b-384", "l-256", "l-384", "xl-384", "xxl-384", "3b-384")
    assert {f"llamagen-{size}" for size in sizes} <= rows.keys()
    assert rows["llamagen-b-256"]["files"][0] == list(FILES)
    assert rows["llamagen-3b-384"]["files"][0] == ["c2i_3B_384.pt", FILES[1]]
    assert rows["llamagen-xl-384"]["checkpoint"] == "FoundationVision/LlamaGen"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: write_checkpoint(f, transformer(), None), ("has no tokenizer", FILES[1])),
        (
            lambda f: write_checkpoint(f, None, tokenizer()),
            ("has a tokenizer and no transformer",),
        ),
        (
            lambda f: write_checkpoint(f, transformer(), tokenizer(40)),
            ("its tokenizer is another model's: vocab_size is 48 in the transformer, 40 in it",),
        ),
        (
            lambda f: write_checkpoint(f, dict(random_par().state_dict()), tokenizer()),
            ("is not a LlamaGen transformer, but a PAR",),
        ),
        (
            lambda f: write_checkpoint(
                f, transformer() | {"norm.weight": torch.full((32,), torch.nan)}, tokenizer()
            ),
            ("NaN or infinity in norm.weight",),
        ),
    ],
    ids=["no tokenizer", "no transformer", "another codebook", "a PAR", "not finite"],
)
def test_a_checkpoint_that_is_no_llamagen_is_refused(
    make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        LlamagenExporter().load(job("llamagen", make(tmp_path / "checkpoint")))
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llamagen-b-256", r"is not llamagen-b-256: .*depth is 2, not 12"),
        ("llamagen-b-384", r"is not llamagen-b-384: c2i_B_256\.pt is llamagen-b-256"),
    ],
)
def test_a_variant_of_another_size_is_refused(name: str, message: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint", transformer(), tokenizer())
    with pytest.raises(ExportError, match=message):
        LlamagenExporter().load(job(name, checkpoint))


def test_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    outcome = arvg("export", "llamagen-b-256", tmp_path / "ws", "--static-batch", 2)
    assert_refused(outcome, 4, "grows by one token a step", "leave out --static-batch")
    assert not (tmp_path / "ws").exists()
