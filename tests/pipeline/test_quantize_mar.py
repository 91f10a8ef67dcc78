"""A tiny MAR calibrated along its trajectory, and the Q/DQ graphs that come of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from arvg_trt.families.mar.loop import masked_counts
from arvg_trt.runtime.generator import Generator
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.files import load_sample, sample_files
from arvg_trt.workspace.manifest import MANIFEST

from ..command_line import MAR_CHOICE, arvg, assert_refused
from ..families.mar.models import SMALL
from ..minis.minis import run_decibels

LENGTH = SMALL.length


@pytest.fixture(scope="module")
def workspace(quantized_mar: Path) -> Path:
    """Tests add quantizations of other names."""
    return quantized_mar


def runs(workspace: Path, graph: str) -> list[dict[str, np.ndarray]]:
    folder = workspace / "calibrate" / "samples"
    return [load_sample(path) for path in sample_files(folder, graph)]


def decibel(wanted: np.ndarray, found: np.ndarray) -> float:
    noise = np.square(found.astype(np.float64) - wanted).sum()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise))


def test_passes_are_spread_over_the_trajectory_of_each_picture(workspace: Path) -> None:
    found = runs(workspace, "pass")
    known = [feeds["tokens"].shape[1] for feeds in found]
    before = [LENGTH, *masked_counts(16, LENGTH)[:-1]]
    counts = sorted(LENGTH - n for n in before)
    quarters = [counts[:4], counts[4:8], counts[8:12], counts[12:]]
    pictures = [known[k : k + 4] for k in range(0, len(known), 4)]
    assert len(pictures) == 6 and len({tuple(p) for p in pictures}) > 1
    assert 0 in known  # the first pass
    for label, picture in enumerate(pictures):
        assert all(n in part for n, part in zip(picture, quarters, strict=True))
        for feeds in found[4 * label : 4 * label + 4]:
            assert feeds["labels"].tolist() == [label % 3, SMALL.num_classes]
            first, second = feeds["position_ids"]
            assert np.array_equal(first, second) and np.array_equal(np.sort(first), np.arange(16))
            assert np.array_equal(*feeds["tokens"])


def test_diffusions_are_those_behind_these_passes(workspace: Path) -> None:
    """Their condition is what the recorded pass makes of its next tokens."""
    session = reference_session(workspace / "export" / "pass.onnx")
    denoised = runs(workspace, "denoise")
    passes = runs(workspace, "pass")
    assert len(denoised) == 4 * len(passes) == 96
    for k, feeds in enumerate(passes):
        made = session.run(feeds, ["condition"])["condition"]
        own = denoised[4 * k : 4 * k + 4]
        assert [int(d["time"][0]) // 250 for d in own] == [3, 2, 1, 0]
        for one in own:
            rows = one["condition"].reshape(2, -1, SMALL.head_width)
            np.testing.assert_allclose(rows, made[:, : rows.shape[1]], atol=2e-5)
            assert np.array_equal(*one["x"].reshape(2, -1, SMALL.latent_channels))


def test_a_picture_is_recorded_alike_however_the_work_is_cut(
    workspace: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    assert arvg("calibrate", copy, "--samples", 6, *MAR_CHOICE, "--shard", "2/3").code == 0
    for graph in ("pass", "denoise"):
        whole, part = runs(workspace, graph), runs(copy, graph)
        third = len(whole) // 3
        assert len(part) == third
        for one, other in zip(whole[third : 2 * third], part, strict=True):
            for name, values in one.items():
                np.testing.assert_allclose(other[name], values, atol=1e-4)


def test_quantized_passes_are_near_the_float_ones(workspace: Path) -> None:
    losses = []
    for name in ("w8a8", "w6a6"):
        sessions = [
            reference_session(folder / "pass.onnx")
            for folder in (workspace / "export", workspace / "quantize" / name)
        ]
        pairs = [[s.run(feeds, ["z"])["z"] for s in sessions] for feeds in runs(workspace, "pass")]
        wanted, found = (np.concatenate([p[k].ravel() for p in pairs]) for k in (0, 1))
        losses.append(decibel(wanted, found))
    assert losses[0] > 30 and 18 < losses[1] < losses[0] - 6, losses


def test_the_method_leaves_the_denoiser_as_it_is(workspace: Path) -> None:
    folder = workspace / "quantize" / "w8a8"
    kinds = {
        graph: {node.op_type for node in onnx.load(folder / f"{graph}.onnx").graph.node}
        for graph in ("pass", "denoise", "decoder")
    }
    assert "QuantizeLinear" in kinds["pass"]
    assert not any("Linear" in kind for graph in ("denoise", "decoder") for kind in kinds[graph])
    results = json.loads((folder / MANIFEST).read_text())["results"]
    assert results["quantized"] == 4 * (SMALL.encoder_depth + SMALL.decoder_depth)


def test_the_denoiser_is_quantized_on_request(workspace: Path) -> None:
    """A scale a part of the times and scales a channel; the pass then quantizes its condition."""
    outcome = arvg("quantize", workspace, "--name", "all", "--include", "diffloss.*")
    assert outcome.code == 0, outcome
    folder = workspace / "quantize" / "all"
    results = json.loads((folder / MANIFEST).read_text())["results"]
    more = 3 * SMALL.head_depth + 4  # input_proj, the last layer's two, cond_embed of the pass
    planned = 4 * (SMALL.encoder_depth + SMALL.decoder_depth) + more
    # Random weights let tokens run away, further than half precision reaches.
    wide = [s["name"] for s in results["sites"] if "float16" in (s["reason"] or "")]
    assert set(wide) <= {"diffloss.net.input_proj"}
    assert results["quantized"] == planned - len(wide)
    gathers = [
        node.name
        for node in onnx.load(folder / "denoise.onnx").graph.node
        if node.op_type == "Gather"
    ]
    assert any(name.startswith("diffloss.net.res_blocks.0.mlp.2.token_scale") for name in gathers)
    samples = workspace / "calibrate" / "samples"
    found = run_decibels(workspace / "export", folder, samples, ("pass", "denoise"))
    assert found["pass/z"] > 30 and found["denoise/noise"] > 20, found


@pytest.mark.parametrize(("kind", "least"), [("fp8", 25), ("int8", 20)])
def test_attention_of_both_transformers_is_quantized_on_request(
    workspace: Path, kind: str, least: float
) -> None:
    """With the scales of the plan on both operands of every product, and a little more error."""
    outcome = arvg("quantize", workspace, "--name", kind, "--attention", kind)
    assert outcome.code == 0, outcome
    folder = workspace / "quantize" / kind
    plan = json.loads((folder / "plan.json").read_text())["sites"]
    named = json.loads((workspace / "export" / "sites.json").read_text())["sites"]
    of_pass = {site["name"] for site in named if site["graph"] == "pass"}
    products = {site["name"]: site for site in plan if "bmm" in site["name"]}
    assert all(not site["other"] for name, site in products.items() if name not in of_pass)
    products = {name: site for name, site in products.items() if name in of_pass}
    assert len(products) == 2 * (SMALL.encoder_depth + SMALL.decoder_depth)
    model = onnx.load(folder / "pass.onnx")
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    nodes = {node.name: node for node in model.graph.node}
    for site in named:
        chosen = products.get(site["name"])
        if chosen is None:
            continue
        for value, side in zip(nodes[site["node"]].input, ("activation", "other"), strict=True):
            assert makers[value].op_type == "DequantizeLinear"
            assert held[makers[value].input[1]] == np.float32(chosen[side]["scale"])
    samples = workspace / "calibrate" / "samples"
    found, plain = (
        run_decibels(workspace / "export", workspace / "quantize" / name, samples, ("pass",))
        for name in (kind, "w8a8")
    )
    assert least < found["pass/z"] < plain["pass/z"]


def test_its_bits_are_not_searched(workspace: Path) -> None:
    outcome = arvg("search", workspace, "--budget", "avg_bits<=6", "--activation-bits", 32)
    assert_refused(outcome, 3, "calibrated on runs of pass.onnx", "edit plan.json")


def test_a_pattern_to_include_must_match(workspace: Path) -> None:
    outcome = arvg("quantize", workspace, "--name", "odd", "--include", "diffloss.nett.*")
    assert_refused(outcome, 3, "include pattern 'diffloss.nett.*' matches no site")


def test_it_generates_from_its_folder(workspace: Path, tmp_path: Path) -> None:
    options = {"seed": 3, "iterations": 3, "diffusion_steps": 4, "temperature": 0.5}
    wanted, found = (
        Generator.open(folder).generate([0, 1], **options).tokens
        for folder in (workspace / "export", workspace / "quantize" / "w8a8")
    )
    assert decibel(wanted, found) > 10
    outcome = arvg(
        "generate",
        *(workspace / "quantize" / "w6a6", "--labels", 1, "-o", tmp_path / "out"),
        *("--iterations", 2, "--diffusion-steps", 2),
    )
    assert outcome.code == 0 and len(list((tmp_path / "out").glob("*_1.png"))) == 1
