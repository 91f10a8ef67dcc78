"""The ablation's measures equal sums written another way."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from arvg_trt.benchmarks.ablation.ablation import (
    FORMATS,
    HEAD,
    MODULATION,
    SMOOTHED,
    STEPS,
    kept_steps,
    main,
    steps_of,
)
from arvg_trt.benchmarks.ablation.logits import Row, cells, logit_setbacks
from arvg_trt.benchmarks.ablation.mar import MarRow, mar_cells, mar_row, mar_setbacks, mar_table
from arvg_trt.benchmarks.ablation.measure import Distance, Feeds, graph_model, measure
from arvg_trt.benchmarks.fuzz.examples import report_bytes
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.samples.files import save_sample
from arvg_trt.validate.measure.generator_accuracy import GeneratorAccuracy
from arvg_trt.validate.metrics.outputs import OutputAccuracy
from arvg_trt.validate.report.schema import Report

RNG = np.random.default_rng(0)
WANTED = RNG.normal(size=(5, 4, 6))
FOUND = WANTED + 0.3 * RNG.normal(size=WANTED.shape)


def distance(tmp_path: Path, batch: int) -> Distance:
    """Between tables of logits, of which a sample names its row."""
    for k in range(5):
        save_sample({"labels": np.array([k], np.int64)}, tmp_path, k)

    def model(logits: np.ndarray, offset: float):  # type: ignore[no-untyped-def]
        def run(feeds: Feeds) -> dict[str, np.ndarray]:
            rows = logits[feeds["labels"]]
            return {"logits": rows + offset, "inside": rows}

        return run

    return measure(model(WANTED, 0), model(FOUND, 7), tmp_path, batch, ["inside"])


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_distances_are_those_of_all_tokens_at_once(tmp_path: Path, batch: int) -> None:
    found = distance(tmp_path, batch)
    p, q = (np.exp(v) / np.exp(v).sum(axis=-1, keepdims=True) for v in (WANTED, FOUND))
    assert found.kl == pytest.approx(np.mean(np.sum(p * np.log(p / q), axis=-1)))
    assert found.top1 == np.mean(WANTED.argmax(-1) == FOUND.argmax(-1))
    # A constant of a token is no error of its logits.
    centre = WANTED - WANTED.mean(-1, keepdims=True)
    error = FOUND - FOUND.mean(-1, keepdims=True) - centre
    assert found.logits_db == pytest.approx(20 * np.log10(np.std(centre) / np.std(error)))
    plain = np.linalg.norm(WANTED) / np.linalg.norm(FOUND - WANTED)
    assert found.sites_db == {"inside": pytest.approx(20 * np.log10(plain))}
    ordered = np.sort(WANTED, axis=-1)
    near = ordered[..., -1] - ordered[..., -2] < np.sqrt(np.mean(error**2))
    assert 0 < found.tied == near.mean()


def test_a_graph_gives_the_tensors_inside_it_too(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["inside"]),
        helper.make_node("Exp", ["inside"], ["logits"]),
    ]
    ends = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"])] for n in ("x", "logits")]
    graph = helper.make_graph(nodes, "full", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "full.onnx")
    x = np.array([1, 2, 3], np.float32)
    found = graph_model(tmp_path, ["inside"])({"x": x})
    assert list(found) == ["logits", "inside"]
    assert np.array_equal(found["inside"], -x)
    assert found["logits"] == pytest.approx(np.exp(-x))


def test_every_format_has_its_steps_and_float_inputs_have_nothing_to_scale() -> None:
    for name in FORMATS:
        found = dict(steps_of(name))
        if all(o.activation_bits == 32 for o in found.values()):
            assert list(found) == ["nearest", "rounded with data"]
            assert [o.rounding for o in found.values()] == ["nearest", "gptq"]
        else:
            left_out = [step for step in STEPS if step not in found]
            assert left_out == [s for s, c in STEPS.items() if name == "FP8" and "rounding" in c]
    assert dict(steps_of("W6A6"))["GPS, a scale a position"].token_wise


def site(name: str, role: str, output: str) -> Site:
    return Site(
        name=name,
        graph="full",
        role=role,
        op="MatMul",
        node=name,
        weight=f"{name}.weight",
        bias=None,
        input="x",
        output=output,
        weight_shape=(8, 8),
    )


def test_what_stays_in_high_precision_is_what_the_model_has() -> None:
    block = site("block.fc1", "fc1", "h")
    head, modulation = site("head", "head", "logits"), site("block.ada_lin", "adaln", "m")

    def further(*sites: Site) -> dict:
        return kept_steps(SiteMap(sites=sites, graphs=("full",)))

    assert further(block) == {}
    assert list(further(block, head)) == [HEAD]
    found = further(block, head, modulation)
    assert list(found) == [HEAD, MODULATION, SMOOTHED]
    steps = dict(steps_of("W6A6", found))
    assert steps[HEAD].exclude == ("head",) and steps[HEAD].adaln_bits is None
    for last, scaling in ((steps[MODULATION], "gps"), (steps[SMOOTHED], 0.5)):
        assert last.exclude == ("head",) and last.adaln_bits == 8 and last.rounding == "gptq"
        assert last.smoothing == scaling and last.token_wise
    assert MODULATION not in dict(steps_of("FP8", found))
    assert list(dict(steps_of("W4A16", found))) == ["nearest", "rounded with data"]


def test_a_step_that_does_not_help_is_named() -> None:
    def row(step: str, kl: float, name: str = "W8A8") -> Row:
        return Row(name, step, Distance(kl, 0.9, 30, {"a": 20.0, "b": 31.0, "c": 40.0}, 0.1))

    rows = [row("per tensor", 3), row("SmoothQuant", 2), row("GPS", 2.5), row("GPS", 9, "W6A6")]
    others = [row("torchao, dynamic per token", 1), Row("FP32", "other seeds", None, None, 0.25)]
    (line,) = logit_setbacks([*others, *rows])
    assert line.startswith("W8A8: GPS does not help over SmoothQuant")
    assert cells(rows[0])[5:8] == ("30.0", "20.0", "31.0")
    assert cells(others[1]) == ("FP32", "other seeds", *[""] * 7, "0.2500")


def test_a_step_of_a_mar_that_does_not_help_is_named_by_its_noise() -> None:
    rows = [
        MarRow(name, step, noise, noise + 2, {"a": 20.0, "b": 31.0, "c": 40.0})
        for name, step, noise in (
            ("W8A8", "per tensor", 20.0),
            ("W8A8", "GPS", 30.0),
            ("W8A8", "search", 25.0),
            ("W6A6", "per tensor", 10.0),
        )
    ]
    (line,) = mar_setbacks(rows)
    assert line == "W8A8: search does not help over GPS (noise 25.0 after 30.0 dB)."
    assert mar_cells(rows[0]) == ("W8A8", "per tensor", "20.0", "22.0", "20.0", "31.0", "")
    assert "| W6A6" in mar_table(rows)


def test_a_row_of_a_mar_is_what_its_report_says_of_the_quantized_graphs() -> None:
    accuracy = GeneratorAccuracy(
        outputs=(
            OutputAccuracy(output="pass/condition", sqnr_db=31.5),
            OutputAccuracy(output="denoise/noise", sqnr_db=None),
        ),
        sites={"a": 20.0, "b": None},
    )
    report = msgspec.json.decode(report_bytes(), type=Report)
    report = msgspec.structs.replace(report, generation={"qdq": accuracy})
    exact = float("inf")
    expected = MarRow("W8A8", "GPS", exact, 31.5, {"a": 20.0, "b": exact}, None)
    assert mar_row("W8A8", "GPS", report) == expected


def test_what_a_mar_has_not_is_refused() -> None:
    outcome = CliRunner().invoke(main, ["--model", "mar-mini", "--peers"])
    assert outcome.exit_code == 2 and "which a MAR has none of" in outcome.output
