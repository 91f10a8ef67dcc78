"""A tiny VAR's checkpoint through the export stage, and checkpoints that do not make a VAR."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arvg_trt.graph.sites import SiteMap
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.workspace.files import decode_json
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import arvg, assert_refused, leftovers
from ..shared.models import Tensors, state_of
from ..tiny import PHOTOGRAPHS, export_generator
from ..var_vqvae.models import random_vqvae
from .models import EXPORTED as CONFIG
from .models import FILES, random_var
from .models import TOKENIZER as VAE
from .models import write_checkpoint as write

SCALES = CONFIG.patch_nums


def transformer() -> Tensors:
    return state_of(random_var(CONFIG))


def vae() -> Tensors:
    return state_of(random_vqvae(VAE))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = transformer(), vae()
    models = random_var(CONFIG), random_vqvae(VAE)
    exported = export_generator(
        tmp_path_factory, "var", models, lambda folder: write(folder, *parts), *PHOTOGRAPHS
    )
    return exported.workspace


def test_every_graph_is_there_and_one_file_of_weights(workspace: Path) -> None:
    graphs = ("encoder", "decoder", "lookup", "condition", "step", "full")
    updates = (f"update.{k}" for k in range(len(SCALES)))
    wanted = {f"{name}.onnx" for name in (*graphs, *updates)}
    wanted |= {"model.onnx.data", "sites.json", "generator.json", MANIFEST}
    assert {p.name for p in (workspace / "export").iterdir()} == wanted


def test_the_manifest_records_parity_at_every_shape(workspace: Path) -> None:
    results = json.loads((workspace / "export" / MANIFEST).read_text())["results"]
    found = results["parity"]["graphs"]
    steps = [(d["tokens"], d["past"]) for d in found if d["graph"] == "step" and d["tokens"]]
    assert steps == [(1, 0), (4, 1), (9, 5)]
    graphs = {d["graph"] for d in found}
    assert graphs >= {"encoder", "decoder", "lookup", "condition", "full", "update.0", "update.2"}
    assert all(0 <= d["mean"] <= d["max"] < 1e-4 for d in found)
    assert results["parity"]["encoder"]["tokens"] == 2 * CONFIG.length
    assert results["parameters_of"]["transformer"] == sum(
        p.numel() for p in random_var(CONFIG).parameters()
    )


def test_generator_json_tells_the_runtime_what_it_needs(workspace: Path) -> None:
    assert json.loads((workspace / "export" / "generator.json").read_text()) == {
        "schema": "arvg-trt/generator/v1",
        "family": "var",
        "patch_nums": [1, 2, 3],
        "num_classes": 5,
        "vocab_size": 48,
        "depth": 1,
        "width": 32,
        "heads": 4,
        "head_dim": 8,
        "latent_channels": 8,
        "latent_size": 3,
        "image_size": 6,
        "defaults": {
            "cfg": 1.5,
            "top_k": 48,
            "top_p": 0.96,
            "temperature": 1.0,
            "cfg_power": None,
        },
        "static_batch": None,
        "kv_type": "float32",
    }


def test_sites_of_all_graphs_are_in_the_map(workspace: Path) -> None:
    sites = decode_json(workspace / "export" / "sites.json", SiteMap, do="")
    assert {"encoder", "decoder", "condition", "step", "full"} <= {s.graph for s in sites.sites}
    folds = [s for s in sites.of_graph("step") if s.producer_fold]
    assert [s.role for s in folds] == ["qkv", "proj", "fc1", "head"]


def test_the_workspace_generates_images(workspace: Path, tmp_path: Path) -> None:
    places = ("-o", tmp_path / "out", "--npz", tmp_path / "x.npz", "--tokens", tmp_path / "t.npz")
    outcome = arvg("generate", workspace, "--labels", "0-4", "--batch-size", 2, *places)
    assert outcome.code == 0, outcome
    images, tokens = np.load(tmp_path / "x.npz")["arr_0"], np.load(tmp_path / "t.npz")["tokens"]
    assert images.shape == (5, VAE.image_size, VAE.image_size, 3) and images.dtype == np.uint8
    assert tokens.shape == (5, CONFIG.length) and 0 <= tokens.min() <= tokens.max() < 48
    assert len(list((tmp_path / "out").iterdir())) == 6


@pytest.mark.usefixtures("one_process")
def test_fixed_shapes_and_half_caches_export_and_generate(workspace: Path, tmp_path: Path) -> None:
    """Three images, two at once. The first map sees no cache, so rounding does not change it."""
    checkpoint = shutil.copytree(workspace.parent / "checkpoint", tmp_path / "checkpoint")
    sampling = {"cfg": 2.5, "top_k": 9, "top_p": 0.5}
    (checkpoint / "config.json").write_text(json.dumps({"sampling": sampling}))
    args = ("--checkpoint", checkpoint, "--images", "skimage:astronaut,coffee")
    form = ("--static-batch", 2, "--kv-type", "float16")
    outcome = arvg("export", "var", tmp_path / "ws", *args, *form)
    assert outcome.code == 0, outcome
    folder = tmp_path / "ws" / "export"
    names = {p.name for p in folder.iterdir()}
    assert names >= {f"step.{k}.onnx" for k in range(3)} and "step.onnx" not in names
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["options"] == {"model": "var", "static_batch": 2, "kv_type": "float16"}
    found = manifest["results"]["parity"]["graphs"]
    steps = [(d["graph"], d["tokens"]) for d in found if d["tokens"]]
    assert steps == [("step.0", 1), ("step.1", 4), ("step.2", 9)]
    spec = json.loads((folder / "generator.json").read_text())
    assert (spec["static_batch"], spec["kv_type"]) == (2, "float16")
    assert sampling.items() <= spec["defaults"].items()
    tokens = []
    for source in (workspace, tmp_path / "ws"):
        path = tmp_path / "t.npz"
        outcome = arvg(
            *(
                "generate",
                source,
                "--labels",
                "0,3,4",
                "--greedy",
                "--cfg",
                1.5,
                "--tokens",
                path,
                "--force",
            )
        )
        assert outcome.code == 0, outcome
        tokens.append(np.load(path)["tokens"])
    assert np.array_equal(tokens[0][:, :1], tokens[1][:, :1])
    assert np.mean(tokens[0] == tokens[1]) > 0.8


def test_a_tokenizer_alone_has_no_fixed_batch(tmp_path: Path) -> None:
    outcome = arvg("export", "cosmos-mini-di8x8", tmp_path / "ws", "--static-batch", 2)
    assert_refused(outcome, 4, "is no generator", "leave out --static-batch")
    assert not (tmp_path / "ws").exists()


def test_the_graphs_generate_tokens_without_pytorch(workspace: Path) -> None:
    """Greedy decoding by the exported graphs alone ends in the f_hat that lookup.onnx gives."""
    folder = workspace / "export"
    constant = reference_session(folder / "condition.onnx").run({"labels": np.array([3])})
    step, x = reference_session(folder / "step.onnx"), constant.pop("x")
    cache = {f"past_{kind}.0": np.zeros((1, 4, 0, 8), np.float32) for kind in ("key", "value")}
    f_hat, chosen = np.zeros((1, 8, 3, 3), np.float32), []
    for k, side in enumerate(SCALES):
        start = sum(s * s for s in SCALES[:k])
        ids = np.arange(start, start + side * side)
        out = step.run({"x": x, "position_ids": ids, **constant, **cache})  # type: ignore[dict-item]
        chosen.append(out["logits"].argmax(-1))
        cache = {f"past_{kind}.0": out[f"present_{kind}.0"] for kind in ("key", "value")}
        update = reference_session(folder / f"update.{k}.onnx")
        out = update.run({"tokens": chosen[-1], "f_hat": f_hat})
        f_hat, x = out["f_hat_next"], out.get("x")
    indices = np.concatenate(chosen, axis=1).astype(np.int32)
    wanted = reference_session(folder / "lookup.onnx").run({"indices": indices})["latent"]
    np.testing.assert_allclose(f_hat, wanted, atol=1e-5)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: write(f, transformer(), None), ("has no tokenizer", FILES[1])),
        (lambda f: write(f, None, vae()), ("has a tokenizer and no transformer",)),
        (
            lambda f: write(f, transformer() | {"head.bias": torch.zeros(47)}, vae()),
            ("head.bias has shape [47], not [48]",),
        ),
        (
            lambda f: write(
                f, transformer(), dict(random_vqvae(replace(VAE, vocab_size=40)).state_dict())
            ),
            ("its tokenizer is another model's: vocab_size is 48 in the transformer, 40 in it",),
        ),
        (
            lambda f: write(f, {"norm.weight": torch.zeros(3)}, vae()),
            ("is not a VAR transformer",),
        ),
    ],
    ids=["no vqvae", "no transformer", "misshapen", "another vqvae", "another family"],
)
def test_a_checkpoint_that_is_no_var_is_refused(
    make: Callable[[Path], Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    checkpoint = make(tmp_path / "checkpoint")
    outcome = arvg("export", "var", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, *words)
    assert not (tmp_path / "ws").exists() and not leftovers(tmp_path)


@pytest.mark.usefixtures("one_process")
def test_a_variant_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "checkpoint", transformer(), vae())
    outcome = arvg("export", "var-d16", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "is not var-d16", "depth is 1, not 16")


def test_a_folder_of_several_sizes_needs_the_variants_name(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "checkpoint", transformer(), vae())
    (checkpoint / "var_d20.pth").touch()
    outcome = arvg("export", "var", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "holds several checkpoints: var_d16, var_d20")
