"""`validate` of a quantized MAR: what both sides predict along FP32's trajectory, and pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from arvg_trt.benchmarks.ablation.mar import run_mar_steps
from arvg_trt.families.mar.recorded_runs import choose_runs
from arvg_trt.runtime.generator import Generator, choose_sampling
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.runtime.sessions.session import SessionObserver
from arvg_trt.workspace.workspace import Workspace

from ..command_line import Outcome, arvg, assert_gate_failed, assert_refused, skipped_twice
from ..families.mar.models import SMALL, TinyMar

SAMPLES, SEED = 3, 1000
LABELS = [k % SMALL.num_classes for k in range(SAMPLES)]
Feeds = Mapping[str, np.ndarray]


def validate(workspace: Path, *args: object, name: str = "w6a6") -> Outcome:
    sampled = ("--samples", SAMPLES, "--rounds", 0, "--batch-size", 2, "--labels", "0-4")
    return arvg("validate", workspace, "--name", name, *sampled, *args)


def report_of(workspace: Path, name: str = "w6a6") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / f"validate/{name}/report.json").read_text())
    return found


GATES = ("--gate", "noise_sqnr_db>=10", "--gate", "qdq.latent_sqnr_db>=0")


@pytest.fixture(scope="module")
def workspace(quantized_mar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("validated") / "ws"
    shutil.copytree(quantized_mar, copy)
    return copy


@pytest.fixture(scope="module")
def report(workspace: Path) -> dict[str, Any]:
    outcome = validate(workspace, *GATES)
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    return report_of(workspace)


class Spy(SessionObserver):
    """Keeps what it is fed, run by run."""

    def __init__(self, path: Path, threads: int) -> None:
        super().__init__(reference_session(path, threads))
        self.fed: list[dict[str, np.ndarray]] = []

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        self.fed.append({name: np.array(values) for name, values in feeds.items()})
        return super().run(feeds, outputs)  # type: ignore[return-value]


def decibel(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    wanted, found = (np.concatenate([p[k].ravel() for p in pairs]).astype(float) for k in (0, 1))
    return float(10 * np.log10(np.square(wanted).sum() / np.square(found - wanted).sum()))


def test_predictions_are_those_of_both_along_fp32s_own_trajectory(
    workspace: Path, report: dict[str, Any]
) -> None:
    """The candidate's noise is that of its own pass: the denoiser alone is not quantized here."""
    spies: dict[str, Spy] = {}

    def opened(path: Path, threads: int) -> Spy:
        return spies.setdefault(path.stem, Spy(path, threads))

    generator = Generator.open(workspace, session=opened)
    sampling = choose_sampling(generator.spec)
    steps = sampling.diffusion_steps
    assert steps
    folders = (workspace / "export", workspace / "quantize" / "w6a6")
    sessions = {
        graph: [reference_session(folder / f"{graph}.onnx") for folder in folders]
        for graph in ("pass", "denoise")
    }
    conditions, noises = [], []
    for number, label in enumerate(LABELS):
        for spy in spies.values():
            spy.fed.clear()
        # One picture at a time: its number, not its batch, decides its random numbers.
        next(generator.batches([label], seed=SEED, sampling=sampling, first=number))
        told: list[np.ndarray] = []
        for graph, k in choose_runs(SEED, number, sampling):
            feeds = spies[graph].fed[k]
            if graph == "pass":
                told = [s.run(feeds, ["condition"])["condition"] for s in sessions["pass"]]
                conditions.append((told[0], told[1]))
                continue
            n = len(feeds["x"]) // 2
            own = [np.concatenate([c[0, :n], c[1, :n]]) for c in told]
            np.testing.assert_allclose(own[0], feeds["condition"], atol=2e-5)
            made = [
                s.run({**feeds, "condition": c}, ["noise"])["noise"]
                for s, c in zip(sessions["denoise"], own, strict=True)
            ]
            noises.append((made[0], made[1]))
    assert len(noises) == 4 * len(conditions) == 16 * SAMPLES
    found = {row["output"]: row["sqnr_db"] for row in report["generation"]["qdq"]["outputs"]}
    assert found["pass/condition"] == pytest.approx(decibel(conditions), abs=0.05)
    assert found["denoise/noise"] == pytest.approx(decibel(noises), abs=0.05)
    assert found.keys() == {"pass/z", "pass/condition", "denoise/noise", "denoise/spread"}


def test_every_quantized_linear_of_the_passes_is_compared(
    workspace: Path, report: dict[str, Any]
) -> None:
    plan = json.loads((workspace / "quantize/w6a6/plan.json").read_text())["sites"]
    linears = [site["name"] for site in plan if site["weight"]]
    found = report["generation"]["qdq"]["sites"]
    assert list(found) == linears and len(linears) == 20
    assert min(found.values()) > 8


def test_pictures_of_the_same_seed_are_compared_by_their_latents(
    workspace: Path, report: dict[str, Any]
) -> None:
    latents = [
        Generator.open(folder, session=reference_session)
        .generate(LABELS, seed=SEED, batch_size=2)
        .tokens
        for folder in (workspace, workspace / "quantize" / "w6a6")
    ]
    found = report["generation"]["qdq"]["pictures"]
    assert found["latent_sqnr_db"] == pytest.approx(decibel([(latents[0], latents[1])]), abs=1e-3)
    assert found["token_agreement"] is None and found["first_difference"] == []
    assert len(found["psnr_vs_fp32"]["each"]) == SAMPLES
    (row,) = found["frechet"]
    assert row["key"] == "frechet_latent" and row["distance"] > 0


def test_measures_of_logits_and_tokens_are_not_shown(
    workspace: Path, report: dict[str, Any]
) -> None:
    folder = workspace / "validate" / "w6a6"
    assert report["generation"]["qdq"]["logits"] is None
    for page in ((folder / "report.md").read_text(), (folder / "report.html").read_text()):
        for words in ("predicted noise", "tells the denoiser", "Latent SQNR", "SQNR of the worst"):
            assert words in page
        for words in ("ogits", "KL", "likeliest", "erplexity", "other token", "top_k"):
            assert words not in page
    gates, sites = ElementTree.parse(folder / "junit.xml").getroot()
    assert (gates.get("name"), gates.get("tests"), len(gates.findall("testcase"))) == (
        "gates",
        "2",
        2,
    )
    assert sites.findall("testcase")
    assert len(list((folder / "samples").glob("*.png"))) == 3 * SAMPLES
    assert report["data"]["sampling"]["diffusion_steps"] == 100


def test_gates_on_what_a_mar_has_not_fail_with_that_reason(workspace: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    outcome = validate(copy, "--gate", "noise_sqnr_db>=200", "--gate", "top1>=0.9", name="w8a8")
    assert_gate_failed(outcome, "noise_sqnr_db>=200 failed", "top1 was not measured")


def test_better_quantizations_have_better_predictions(
    workspace: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    """And sites that the plan adds to the method's are measured too."""
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    given = ("--weight-bits", 8, "--activation-bits", 32, "--include", "diffloss.net.res_blocks.*")
    assert arvg("quantize", copy, "--name", "w8", *given).code == 0
    outcome = validate(copy, name="w8")
    assert outcome.code == 0, outcome
    made, old = (r["generation"]["qdq"] for r in (report_of(copy, "w8"), report))
    better, worse = ({r["output"]: r["sqnr_db"] for r in a["outputs"]} for a in (made, old))
    assert all(better[name] > worse[name] for name in worse)
    head = [name for name in made["sites"] if name.startswith("diffloss")]
    assert len(head) == 3 * SMALL.head_depth
    assert 10 < min(made["sites"][name] for name in head) < 80


def test_the_ablation_measures_the_same(
    workspace: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "ws"
    shutil.copytree(workspace, copy)
    made = iter([("W6A6", "GPS", copy / "quantize" / "w6a6")])
    with Workspace(copy) as opened:
        (row,) = run_mar_steps(opened, made, held_out=SAMPLES, seed=SEED)
    found = {row["output"]: row["sqnr_db"] for row in report["generation"]["qdq"]["outputs"]}
    # Made four at a time there, two here.
    assert row.noise_db == pytest.approx(found["denoise/noise"], abs=0.05)
    assert row.condition_db == pytest.approx(found["pass/condition"], abs=0.05)
    assert row.sites_db == pytest.approx(report["generation"]["qdq"]["sites"], abs=0.1)
    assert row.latents_db is not None and row.latents_db > 0


def test_reports_are_compared(workspace: Path, report: dict[str, Any], tmp_path: Path) -> None:
    base, worse = workspace / "validate" / "w6a6" / "report.json", tmp_path / "worse.json"
    changed = json.loads(json.dumps(report))
    for row in changed["generation"]["qdq"]["outputs"]:
        row["sqnr_db"] -= 3
        row["sums"]["noise"] = [2 * noise for noise in row["sums"]["noise"]]
    worse.write_text(json.dumps(changed))
    assert arvg("compare", base, base).code == 0
    outcome = arvg("compare", base, worse)
    assert outcome.code == 8 and "SQNR of the predicted noise" in outcome.out, outcome


def test_run_follows_a_recipe_and_resumes(
    workspace: Path, tiny_mar: TinyMar, tmp_path: Path
) -> None:
    copy, recipe = tmp_path / "ws", tmp_path / "mar.toml"
    shutil.copytree(workspace, copy)
    shutil.rmtree(copy / "validate", ignore_errors=True)
    recipe.write_text(
        f"""
        schema = "arvg-trt/recipe/v1"
        model = "mar"
        checkpoint = "{tiny_mar.workspace.parent / "checkpoint"}"
        workspace = "{copy}"
        name = "w8a8"
        build = []
        [calibrate]
        samples = 6
        labels = "0-2"
        seed = 3
        [quantize]
        weight_bits = 8
        activation_bits = 8
        [validate]
        samples = 2
        rounds = 0
        gates = ["noise_sqnr_db>=20"]
        """
    )
    assert skipped_twice(recipe) == [True, True, True, False]
    outcome = arvg("run", recipe)
    assert "noise SQNR" in outcome.out, outcome


def test_the_users_images_are_refused(workspace: Path) -> None:
    outcome = validate(workspace, "--images", "skimage", "--labels", "1")
    assert_refused(outcome, 5, "validated along its own trajectory", "--images")
