"""A tiny GSQ tokenizer through the stages, and checkpoints that do not make one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import load
from PIL import Image
from safetensors import safe_open

from arvg_trt.errors import ExportError
from arvg_trt.export.checkpoint.resolve import resolve_checkpoint
from arvg_trt.families.gsq.config import PUBLISHED
from arvg_trt.families.gsq.export import load_model
from arvg_trt.families.gsq.model import GsqTokenizer
from arvg_trt.families.gsq.variants import SIZES
from arvg_trt.families.gsq.yaml import read_normalization
from arvg_trt.families.shared.job import ExportJob
from arvg_trt.families.variants import find_model
from arvg_trt.runtime.images import from_model, load_image, to_model
from arvg_trt.samples.images import open_source
from arvg_trt.workspace.manifest import MANIFEST
from arvg_trt.workspace.stage import SilentReporter

from ...command_line import arvg, assert_refused, leftovers
from ..shared.models import Payload
from .models import EXPORTED, GROUPED, TinyGsq, random_gsq, write_checkpoint

CONFIG = """
dataset: imagenet-1k
model:
  name: flexTokenizer
  embedding_dim: 8
  quantizer_config:
    quantize_type: gvq
    embed_dim: 8
    use_l2_norm: {}
"""


class Heard(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, line: str) -> None:
        self.lines.append(line)


def job(name: str, checkpoint: Path, reporter: SilentReporter | None = None) -> ExportJob:
    entry = find_model(name)
    paths = tuple(resolve_checkpoint(str(checkpoint), entry.files))
    source = open_source("skimage:astronaut")
    return ExportJob(entry, str(checkpoint), paths, source, reporter or SilentReporter())


def test_the_export_leaves_graphs_sites_and_what_later_stages_need(tiny_gsq: TinyGsq) -> None:
    wanted = {"encoder.onnx", "decoder.onnx", "model.onnx.data", "sites.json", MANIFEST}
    assert {p.name for p in tiny_gsq.folder.iterdir()} == wanted
    assert not (tiny_gsq.workspace.parent / "checkpoint" / "ran").exists()
    results = json.loads((tiny_gsq.folder / MANIFEST).read_text())["results"]
    assert results["tokenizer"] == {
        "stride": 4,
        "discrete": True,
        "levels": [],
        "groups": 2,
        "latent_channels": 8,
        "codebook_size": 64,
    }
    assert results["parameters"] == sum(p.numel() for p in tiny_gsq.model.parameters())
    parity = results["parity"]
    assert parity["encoder"]["tokens"] == 64 * 64 * 2
    assert [g["graph"] for g in parity["graphs"]] == ["encoder", "decoder"]
    assert all(0 < g["mean"] < 2e-5 for g in parity["graphs"])


@pytest.fixture(scope="module")
def quantized(tiny_gsq: TinyGsq) -> Path:
    """INT8 by the recipe's defaults, as ONNX Runtime engines, with a report."""
    workspace = tiny_gsq.workspace
    for args in (
        ("calibrate", workspace, "--images", "skimage:coffee", "--samples", 2, "--size", 32),
        ("quantize", workspace, "--name", "int8"),
        ("build", workspace, "--name", "int8", "--backend", "onnxruntime"),
        ("validate", workspace, "--name", "int8", "--images", "skimage:astronaut", "--size", 32),
    ):
        outcome = arvg(*args)
        assert outcome.code == 0, outcome
    return workspace


def test_all_convolutions_between_the_ends_become_integers(quantized: Path) -> None:
    report = json.loads((quantized / "validate" / "int8" / "report.json").read_text())
    rows = {site["name"]: site for site in report["sites"]}
    convolutions = [r for name, r in rows.items() if r["weight"].startswith("INT8")]
    assert len(convolutions) == sum(r["reason"] is None for r in rows.values()) > 20
    assert rows["nearest.parts.0"]["reason"] == "decides codes"
    assert 0 < report["accuracy"]["qdq"]["token_agreement"] <= 1
    assert report["accuracy"]["qdq"]["decoder_sqnr_db"] > 20
    engine = report["accuracy"]["engine"]
    assert engine["decoder_sqnr_db"] > 15


def test_the_codes_that_are_searched_stay_as_they_are(quantized: Path) -> None:
    """Rounded to float16, as what else is not quantized, near codes would change places."""
    tables = []
    for folder in ("export", "quantize/int8"):
        graph = load(quantized / folder / "encoder.onnx").graph
        tables.append(next(t for t in graph.initializer if t.name == "nearest.parts.0.weight"))
    assert tables[0].raw_data == tables[1].raw_data
    values = np.frombuffer(tables[0].raw_data, np.float32)
    assert (values != values.astype(np.float16)).any()


def test_the_tables_that_are_searched_are_no_weights(quantized: Path) -> None:
    results = json.loads((quantized / "quantize" / "int8" / MANIFEST).read_text())["results"]
    stored = (quantized / "export" / "model.onnx.data").stat().st_size
    assert results["fp32_bytes"] == stored - 4 * EXPORTED.vocab_size * EXPORTED.code_channels
    with safe_open(quantized / "quantize" / "int8" / "weights.safetensors", "numpy") as file:
        names = list(file.keys())
    assert "quantizers.codebook.weight" in names
    assert not [name for name in names if name.startswith("nearest")]


@pytest.mark.parametrize("folder", ["", "export", "engines/int8/onnxruntime"])
def test_pictures_become_tokens_and_pictures_again(
    quantized: Path, tiny_gsq: TinyGsq, tmp_path: Path, folder: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tokens = tmp_path / "tokens.npz"
    outcome = arvg("encode", quantized / folder, tmp_path / "a.png", "-o", tokens)
    assert outcome.code == 0, outcome
    with np.load(tokens) as found:
        codes = found["tokens_0"]
    assert codes.shape == (1, 3, 4, 2)
    assert arvg("decode", quantized / folder, tokens, "-o", tmp_path / "out").code == 0
    back = load_image(tmp_path / "out" / "a.png")
    assert back.shape == pixels.shape
    if not folder.startswith("engines"):
        wanted = tiny_gsq.model.codes(tiny_gsq.model.encode(torch.from_numpy(to_model(pixels))))
        assert np.array_equal(codes, wanted.numpy())
        image = from_model(tiny_gsq.model.decode(wanted).numpy())
        assert np.abs(back.astype(int) - image).max() <= 1


def test_a_picture_of_one_position_is_refused_by_file(quantized: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 3, 3), np.uint8)).save(tmp_path / "dot.png")
    outcome = arvg("encode", quantized, tmp_path / "dot.png", "-o", tmp_path / "t.npz")
    assert_refused(outcome, 7, "dot.png: has 1 of the 2 or more positions")


def test_every_published_tokenizer_is_known_with_its_parameters() -> None:
    assert len(SIZES) == len(PUBLISHED) == 26
    for entry in SIZES:
        with torch.device("meta"):
            model = GsqTokenizer(entry.config)
        assert sum(p.numel() for p in model.parameters()) == entry.parameters, entry.name
    assert find_model("gsq-f8-d8-v64k").hub == "HelmholtzAI-FZJ/GSQ-F8-D8-V64k"
    odd = find_model("gsq-f16-d16-g4-v256k-uniform-init")
    assert odd.hub == "HelmholtzAI-FZJ/GSQ-F16-D16-G4-V256k_uniform_init"
    kinds = Counter(entry.config.normalization for entry in SIZES)
    assert kinds == {"l2": 23, "none": 2, "clip": 1}
    assert {entry.config.stride for entry in SIZES} == {8, 16, 32}


def test_the_name_of_a_published_one_takes_no_other(tmp_path: Path) -> None:
    write_checkpoint(random_gsq(GROUPED), tmp_path)
    outcome = arvg("export", "gsq-f8-d8-v64k", tmp_path / "ws", "--checkpoint", tmp_path)
    assert_refused(outcome, 4, "is not gsq-f8-d8-v64k: channels is 32, not 128", "groups is 2")
    assert not leftovers(tmp_path)


def test_a_normalization_that_nothing_tells_is_not_guessed(tmp_path: Path) -> None:
    write_checkpoint(random_gsq(GROUPED), tmp_path)
    outcome = arvg("export", "gsq", tmp_path / "ws", "--checkpoint", tmp_path)
    assert_refused(outcome, 4, "has no config.yaml", "use_l2_norm under quantizer_config")
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(("told", "kind"), [("true", "l2"), ("false", "none")])
def test_a_config_beside_the_weights_tells_it(tmp_path: Path, told: str, kind: str) -> None:
    write_checkpoint(random_gsq(GROUPED), tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG.format(told))
    heard = Heard()
    made = job("gsq", tmp_path, heard)
    assert load_model(made).config == replace(GROUPED, normalization=kind)
    assert heard.lines == []
    assert tmp_path / "config.yaml" in made.inputs()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("quantizer_config: {use_l1_norm: true}", "l1"),
        ("quantizer_config: {force_1d_clip: true, use_uniform_init: true}", "clip"),
        ("quantizer_config: {force_1d_clip: true}", "none"),
        ("quantizer_config: {}", "none"),
    ],
)
def test_what_the_config_leaves_out_is_the_official_default(
    tmp_path: Path, text: str, kind: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert read_normalization(tmp_path) == kind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("a: 1", "has no quantizer_config"),
        ("", "has no quantizer_config"),
        ("quantizer_config: 3", "has no quantizer_config"),
        ("quantizer_config: {use_l2_norm: 'no'}", "has use_l2_norm 'no'"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ExportError, match=f"config.yaml: {words}"):
        read_normalization(tmp_path)


def test_a_checkpoint_that_runs_something_is_refused(tmp_path: Path) -> None:
    path, ran = tmp_path / "checkpoint.pt", tmp_path / "ran"
    torch.save({"model_state_dict": random_gsq().state_dict(), "config": Payload(ran)}, path)
    outcome = arvg("export", "gsq", tmp_path / "ws", "--checkpoint", path)
    assert_refused(outcome, 4, "was not read: its pickle asks for")
    assert not ran.exists() and not leftovers(tmp_path)


def test_it_has_neither_a_fixed_batch_nor_caches(tmp_path: Path) -> None:
    write_checkpoint(random_gsq(), tmp_path)
    args = ("export", "gsq", tmp_path / "ws", "--checkpoint", tmp_path, "--static-batch", 2)
    assert_refused(arvg(*args), 4, "gsq: is no generator")
