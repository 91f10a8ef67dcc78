"""Tiny generators' checkpoints through the stages, and checkpoints that make no generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arvg_trt.families.llamagen.export import generator_spec as llamagen_spec
from arvg_trt.families.par.export import generator_spec as par_spec
from arvg_trt.families.shared.llama.config import LlamaConfig
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.spec import Defaults, GeneratorSpec
from arvg_trt.workspace.manifest import MANIFEST

from ...command_line import arvg, assert_refused, leftovers
from ..mar import models as mar
from ..par import models as par
from ..var import models as var
from .models import TinyExported, assert_exporter_refuses, state_of
from .token_families import FAMILIES, LLAMAGEN, PAR, RAR, TokenFamily

MAR_GRAPHS = ("pass", "denoise")
ALL = {**{name: family.graphs for name, family in FAMILIES.items()}, "mar": MAR_GRAPHS}


@pytest.fixture(params=ALL)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def exported(request: pytest.FixtureRequest, name: str) -> TinyExported:
    found: TinyExported = request.getfixturevalue(f"tiny_{name}")
    return found


def test_every_graph_is_there_and_one_file_of_weights(name: str, exported: TinyExported) -> None:
    wanted = {f"{graph}.onnx" for graph in (*ALL[name], "encoder", "decoder")}
    wanted |= {"model.onnx.data", "sites.json", "generator.json", MANIFEST}
    assert {p.name for p in exported.folder.iterdir()} == wanted


def test_the_manifest_records_parity_and_parameters(name: str, exported: TinyExported) -> None:
    manifest = json.loads((exported.folder / MANIFEST).read_text())
    results = manifest["results"]
    found = results["parity"]["graphs"]
    assert {d["graph"] for d in found} == {*ALL[name], "encoder", "decoder"}
    assert all(0 <= d["mean"] <= d["max"] < 1e-4 for d in found)
    if name in FAMILIES:
        family = FAMILIES[name]
        beside = set() if name == "rar" else {"config.json"}
        assert {*family.files, *beside} < manifest["inputs"].keys()
        steps = [(d["tokens"], d["past"]) for d in found if d["graph"] == "step" and d["tokens"]]
        assert tuple(steps) == family.steps
        tokens = {"tokens": 2 * family.config.length, "differ": 0, "at_boundary": 0}
        assert results["parity"]["encoder"] == tokens
    assert results["parameters_of"] == {
        "transformer": sum(p.numel() for p in exported.transformer.parameters()),
        "tokenizer": sum(p.numel() for p in exported.tokenizer.parameters()),
    }


USUAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
LLAMA: dict[str, Any] = {
    "vocab_size": 48,
    "depth": 2,
    "width": 32,
    "heads": 2,
    "head_dim": 16,
    "defaults": {"cfg": 1.5, "cfg_power": None, **USUAL},
    "kv_type": "float32",
}
GENERATOR_JSON: dict[str, dict[str, Any]] = {
    "par": {"group": 4, **LLAMA},
    "llamagen": LLAMA,
    "rar": LLAMA | {"heads": 4, "head_dim": 8, "defaults": {"cfg": 4.0, "cfg_power": 0.0, **USUAL}},
    "mar": {
        "latent_channels": 4,
        "defaults": {
            **{"cfg": 3.0, "cfg_power": 1.0, **USUAL},
            **{"iterations": 16, "diffusion_steps": 100},
        },
    },
}


def test_generator_json_tells_the_runtime_what_it_needs(name: str, exported: TinyExported) -> None:
    assert json.loads((exported.folder / "generator.json").read_text()) == {
        "schema": "arvg-trt/generator/v1",
        "family": name,
        "side": 4,
        "num_classes": 5,
        "image_size": 8,
        **GENERATOR_JSON[name],
    }


@pytest.mark.parametrize(
    ("config", "make_spec"),
    [(PAR.config, par_spec), (LLAMAGEN.config, llamagen_spec)],
    ids=["par", "llamagen"],
)
def test_config_json_may_tell_the_sampling(
    config: LlamaConfig, make_spec: Callable[..., GeneratorSpec]
) -> None:
    own = Defaults(cfg=3.0, top_k=20, top_p=0.9)
    assert make_spec(config, par.TOKENIZER, sampling=own).defaults == own


def test_the_sites_of_llamagens_tokenizer_leave_out_its_ends(tiny_par: par.TinyPar) -> None:
    found = json.loads((tiny_par.folder / "sites.json").read_text())["sites"]
    left_out = {s["name"] for s in found if s["excluded"] and s["graph"] in ("encoder", "decoder")}
    ends = {"encoder.conv_in", "quant_conv", "post_quant_conv", "decoder.conv_out", "nearest"}
    assert {name for name in left_out if "bmm" not in name} == ends


@pytest.mark.parametrize(
    ("family", "asked", "own"),
    [
        ("par", {"cfg": 3.0}, {"cfg": 1.5}),
        ("rar", {"cfg": 3.0, "cfg_power": 2.0}, {"cfg_power": 0}),
    ],
    indirect=["family"],
    ids=["par", "rar"],
)
def test_the_workspace_generates_images(
    tiny: TinyExported, tmp_path: Path, asked: dict[str, float], own: dict[str, float]
) -> None:
    places = ("-o", tmp_path / "out", "--npz", tmp_path / "x.npz", "--tokens", tmp_path / "t.npz")
    options: list[object] = ["--labels", "0-4", "--batch-size", 2, "--temperature", 1.1]
    for key, value in asked.items():
        options += [f"--{key.replace('_', '-')}", value]
    outcome = arvg("generate", tiny.workspace, *options, *places)
    assert outcome.code == 0, outcome
    images, tokens = np.load(tmp_path / "x.npz")["arr_0"], np.load(tmp_path / "t.npz")["tokens"]
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    wanted = Generator.open(tiny.workspace).generate(range(5), temperature=1.1, **asked)
    assert np.array_equal(tokens, wanted.tokens) and np.array_equal(images, wanted.images)
    assert len(list((tmp_path / "out").iterdir())) == 6
    greedy = arvg(
        "generate", tiny.workspace, "--labels", 1, "--greedy", "--json", "--force", *places[-2:]
    )
    assert own.items() <= json.loads(greedy.out)["sampling"].items()
    assert not np.array_equal(np.load(tmp_path / "t.npz")["tokens"], tokens[1:2])


@pytest.mark.parametrize("family", ["par", "rar"], indirect=True)
def test_pictures_are_encoded_and_decoded(tiny: TinyExported, tmp_path: Path) -> None:
    picture = tmp_path / "out" / "00000_0.png"
    arvg("generate", tiny.workspace, "--labels", 0, "-o", picture.parent)
    tokens = tmp_path / "t.npz"
    assert arvg("encode", tiny.folder, picture, "-o", tokens).code == 0
    assert np.load(tokens)["tokens_0"].shape == (1, 4, 4)
    outcome = arvg("decode", tiny.folder, tokens, "-o", tmp_path / "back")
    assert outcome.out == f"{tmp_path / 'back' / picture.name}\n"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("par", ("--temperature", 0), "temperature is 0.0, not above 0"),
        ("par", ("--labels", 5), "label out of range: 5"),
        ("par", ("--cfg-power", 1), "cfg_power is not this family's"),
        ("rar", ("--temperature", 0), "temperature is 0.0, not above 0"),
        ("mar", ("--top-k", 5), "top_k is not this family's"),
        ("mar", ("--iterations", 99), "iterations is 99, not 1 to 16"),
        ("mar", ("--labels", 5), "label out of range: 5"),
    ],
    indirect=["name"],
)
def test_an_option_out_of_range_is_refused(
    exported: TinyExported, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    places = ("-o", tmp_path / "out")
    outcome = arvg("generate", exported.workspace, "--labels", 0, *options, *places)
    assert_refused(outcome, 10, message)
    assert list(tmp_path.iterdir()) == []


def test_models_lists_every_size_with_its_files_and_repositories() -> None:
    rows = {row["name"]: row for row in json.loads(arvg("models", "--json").out)["models"]}
    sizes = {f"par-{size}-{n}x" for size in ("l", "xl", "xxl", "3b") for n in (4, 16)}
    of_llamagen = ("b-256", "b-384", "l-256", "l-384", "xl-384", "xxl-384", "3b-384")
    sizes |= {f"llamagen-{size}" for size in of_llamagen}
    sizes |= {"rar-b", "rar-l", "rar-xl", "rar-xxl", "mar-b", "mar-l", "mar-h"}
    assert sizes <= rows.keys()
    files = {name: rows[name]["files"][0] for name in sizes}
    assert files["par-xl-4x"] == list(PAR.files)
    assert files["par-3b-16x"] == ["PAR-3B-16x.pt", PAR.files[1]]
    assert files["llamagen-b-256"] == list(LLAMAGEN.files)
    assert files["llamagen-3b-384"] == ["c2i_3B_384.pt", LLAMAGEN.files[1]]
    assert files["rar-b"] == list(RAR.files)
    assert files["mar-b"] == list(mar.FILES)
    assert rows["mar-l"]["files"][2] == ["mar-large.safetensors", "kl16.safetensors"]
    assert rows["par-xl-4x"]["checkpoint"] == "Epiphqny/PAR, FoundationVision/LlamaGen"
    assert rows["llamagen-xl-384"]["checkpoint"] == "FoundationVision/LlamaGen"
    assert rows["rar-b"]["checkpoint"] == "yucornetto/RAR, fun-research/TiTok"
    assert rows["mar-h"]["checkpoint"] == "jadechoghari/mar"
    assert rows["mar-h"]["parameters"] == 942_403_104


def changed(family: TokenFamily, name: str, value: torch.Tensor) -> Callable[[], dict[str, Any]]:
    return lambda: family.transformer_state() | {name: value}


NOT_FINITE = {"norm.weight": torch.full((32,), torch.nan)}
# The transformer's and the tokenizer's tensors, each None where the file is not there.
FOREIGN = [
    (PAR, changed(PAR, "output.weight", torch.zeros(47, 32)), PAR.tokenizer,
     "output.weight has shape [47, 32], not [48, 32]"),
    (RAR, changed(RAR, "lm_head.bias", torch.zeros(47)), RAR.tokenizer,
     "lm_head.bias has shape [47], not [48]"),
    (PAR, RAR.transformer_state, PAR.tokenizer,
     "holds a RAR transformer and a LlamaGen VQ tokenizer, not a PAR transformer"),
    (LLAMAGEN, PAR.transformer_state, LLAMAGEN.tokenizer,
     "holds a PAR transformer and a LlamaGen VQ tokenizer, not a LlamaGen transformer"),
    (RAR, lambda: state_of(var.random_var(var.SMALL)), RAR.tokenizer,
     "NaN or infinity in attn_bias_for_masking"),
    (RAR, lambda: {"norm.weight": torch.zeros(3)}, RAR.tokenizer, "is not a RAR transformer"),
    (PAR, PAR.transformer_state, RAR.tokenizer, "is not a LlamaGen VQ"),
    (PAR, lambda: PAR.transformer_state() | NOT_FINITE, PAR.tokenizer,
     "NaN or infinity in norm.weight"),
    (LLAMAGEN, lambda: LLAMAGEN.transformer_state() | NOT_FINITE, LLAMAGEN.tokenizer,
     "NaN or infinity in norm.weight"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "transformer", "tokenizer", "words"),
    FOREIGN,
    ids=[f"{row[0].name}-{row[-1]}" for row in FOREIGN],
)
def test_a_checkpoint_of_another_model_is_refused(
    asked: TokenFamily,
    transformer: Callable[[], dict[str, Any]],
    tokenizer: Callable[[int], dict[str, Any]],
    words: str,
    tmp_path: Path,
) -> None:
    checkpoint = asked.write_checkpoint(tmp_path / "checkpoint", transformer(), tokenizer(48))
    assert_exporter_refuses(asked.exporter, asked.name, checkpoint, words)


def test_a_checkpoint_that_lacks_a_part_or_mixes_two_is_refused(
    family: TokenFamily, tmp_path: Path
) -> None:
    state, tokenizer = family.transformer_state(), family.tokenizer(48)
    another = "its tokenizer is another model's: vocab_size is 48 in the transformer, 40 in it"
    refused = [
        (state, None, "has no tokenizer", family.files[1]),
        (None, tokenizer, "holds a ", " tokenizer, not a ", " transformer (export it as "),
        (state, family.tokenizer(40), another),
    ]
    for k, (transformer, other, *words) in enumerate(refused):
        checkpoint = family.write_checkpoint(tmp_path / str(k), transformer, other)
        assert_exporter_refuses(family.exporter, family.name, checkpoint, *words)


@pytest.mark.parametrize(
    ("family", "model", "words"),
    [
        ("par", "par-xl-4x", ("is not par-xl-4x: ", "depth is 2, not 36")),
        ("llamagen", "llamagen-b-256", ("is not llamagen-b-256: ", "depth is 2, not 12")),
        ("llamagen", "llamagen-b-384", ("is not llamagen-b-384: c2i_B_256.pt is llamagen-b-256",)),
        ("rar", "rar-b", ("is not rar-b: ", "depth is 2, not 24")),
    ],
    indirect=["family"],
)
def test_a_variant_of_another_size_is_refused(
    family: TokenFamily, model: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    checkpoint = family.checkpoint(tmp_path / "checkpoint")
    assert_exporter_refuses(family.exporter, model, checkpoint, *words)


@pytest.mark.usefixtures("one_process")
def test_a_refused_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = RAR.write_checkpoint(tmp_path / "checkpoint", RAR.transformer_state(), None)
    outcome = arvg("export", "rar", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "has no tokenizer")
    assert not (tmp_path / "ws").exists() and not leftovers(tmp_path)


@pytest.mark.usefixtures("one_process")
def test_a_config_json_that_contradicts_is_refused(tmp_path: Path) -> None:
    checkpoint = PAR.checkpoint(tmp_path / "checkpoint")
    (checkpoint / "config.json").write_text(json.dumps(par.JSON | {"ar_token_num": 16}))
    outcome = arvg("export", "par", tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, "group is 4 in the tensors, 16 in config.json")
    assert not (tmp_path / "ws").exists() and not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("par-xl-4x", ("--static-batch", 2), "grows by a few tokens a step"),
        ("llamagen-b-256", ("--static-batch", 2), "grows by one token a step"),
        ("rar-b", ("--static-batch", 2), "a cache that grows by one token a step"),
        ("mar-b", ("--static-batch", 2), "no fixed shapes and no KV caches"),
        ("mar-b", ("--kv-type", "float16"), "no fixed shapes and no KV caches"),
    ],
)
def test_forms_that_a_family_has_not_are_refused(
    model: str, options: tuple[object, ...], words: str, tmp_path: Path
) -> None:
    outcome = arvg("export", model, tmp_path / "ws", *options)
    assert_refused(outcome, 4, words, "leave out --static-batch")
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("family", "other", "found"),
    [("par", "PAR-3B-4x.pt", "PAR-3B-4x, PAR-XL-4x"), ("rar", "rar_l.bin", "rar_b, rar_l")],
    indirect=["family"],
)
def test_a_folder_of_several_sizes_needs_the_variants_name(
    family: TokenFamily, other: str, found: str, tmp_path: Path
) -> None:
    checkpoint = family.checkpoint(tmp_path / "checkpoint")
    (checkpoint / other).touch()
    outcome = arvg("export", family.name, tmp_path / "ws", "--checkpoint", checkpoint)
    assert_refused(outcome, 4, f"holds several checkpoints: {found}")
