"""Tensors near the end of float16 are found, kept out of INT8, or listed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, save

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.errors import CalibrationError
from arvg_trt.graph.builder import constant_array
from arvg_trt.graph.io import load_graph
from arvg_trt.graph.sites import SiteMap
from arvg_trt.graph.weight_file import SharedWeights
from arvg_trt.quantize.overflow import LIMIT, quantize_in_range
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.run import quantize_model
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.samples.files import GraphRun, save_sample

from ..families.generators import TinyGenerator, activations
from ..families.tiny import silent
from .test_shared_graphs import quantize, statistics_of


def test_peaks_are_the_largest_magnitudes_of_all_float_tensors_but_masked_ones(
    tiny_var: TinyGenerator, tmp_path: Path
) -> None:
    folder = tmp_path / "q"
    quantize(tiny_var, folder, smoothing="gps")
    peaks = CalibrationRun(folder, tiny_var.samples, ("full",), 2, silent).absmax()
    found = peaks["full"]
    wanted = activations(folder / "full.onnx", tiny_var.feeds(), list(found))
    for name, value in wanted.items():
        assert np.isclose(found[name], np.abs(value).max(), rtol=1e-6), name
    graph = load_graph(folder / "full.onnx").graph
    by_op: dict[str, list[bool]] = {}
    for node in graph:
        by_op.setdefault(node.op_type, []).append(node.outputs[0].name in found)
    for op in ("MatMul", "Softmax", "LayerNormalization", "Gelu"):
        assert all(by_op[op]), op
    assert not any(by_op["QuantizeLinear"])
    # Scores with a mask added are left out; the product in front of it is there.
    softmax = next(n for n in graph if n.op_type == "Softmax")
    assert softmax.inputs[0].name not in found
    # Weights are constants.
    weights = [n for n in graph if str(n.name).endswith(".weight/DequantizeLinear")]
    assert weights and not any(n.outputs[0].name in found for n in weights)


@pytest.mark.parametrize("least", [0.5, 0.0, -1.0])
def test_a_tensor_without_elements_has_no_peak_and_nan_is_refused(
    tmp_path: Path, least: float
) -> None:
    """A MAR's first pass has no known tokens.

    -infinity is a mask's, NaN no one's.
    """
    info = helper.make_tensor_value_info
    shape = ["rows", "n"]
    graph = helper.make_graph(
        [helper.make_node("Log", ["x"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 21)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "g.onnx")
    samples = tmp_path / "samples"
    samples.mkdir()
    for k, x in enumerate((np.zeros((2, 0)), np.array([[1.0, 2.0, least]]))):
        save_sample(GraphRun("g", {"x": x.astype(np.float32)}), samples, k)
    if least >= 0:
        peaks = CalibrationRun(tmp_path, samples, ("g",), 1, silent).absmax()
        assert peaks["g"]["y"] == pytest.approx(np.log(2))
        return
    with pytest.raises(CalibrationError, match="g makes NaN or infinity at y") as refusal:
        CalibrationRun(tmp_path, samples, ("g",), 1, silent).absmax()
    assert refusal.value.where == "00001.g.safetensors"


def scaled(source: TinyGenerator, folder: Path, weight: str, factor: float) -> TinyGenerator:
    """The generator with one weight multiplied."""
    folder.mkdir()
    with SharedWeights(folder) as weights:
        for path in sorted(source.folder.glob("*.onnx")):
            model = ir.load(path)
            value = model.graph.initializers.get(weight)
            if value is not None:
                value.const_value = ir.tensor(constant_array(value) * factor, name=weight)
            weights.write(model, path.stem)
    return replace(source, folder=folder)


@pytest.mark.parametrize(("weight", "hot"), [("head", True), ("blocks.1.ffn.fc2", False)])
def test_a_site_that_would_overflow_stays_in_high_precision_and_its_tensors_in_fp32(
    tiny_var: TinyGenerator, tmp_path: Path, weight: str, hot: bool
) -> None:
    site = next(s for s in tiny_var.full_sites if s.name == weight)
    factor = np.float32(3e4) if hot else np.float32(0.5)
    source = scaled(tiny_var, tmp_path / "export", str(site.weight), factor)
    output = tmp_path / "q"
    output.mkdir()
    planned = SiteMap(sites=source.full_sites)
    options = QuantizeOptions(smoothing="gps")
    statistics = statistics_of(source)
    plan, results, wide = quantize_in_range(
        lambda entries: quantize_model(
            CalibrationRun(source.folder, source.samples, source.site_map.graphs, 5, silent),
            output,
            source.site_map,
            entries,
            statistics,
            options,
            shared=True,
        ),
        CalibrationRun(output, source.samples, ("full",), 5, silent),
        source.site_map,
        check_plan(make_plan(planned, options), planned),
    )
    entries = {e.name: e for e in plan.sites}
    told = {r.name: r for r in results}
    others = [n for n, r in told.items() if n != weight and entries[n].weight is not None]
    assert len(others) >= 8
    if not hot:
        assert entries[weight].weight is not None and wide == []
        return
    assert entries[weight].weight is None and entries[weight].activation is None
    assert "too near float16's 65504" in (told[weight].reason or "")
    assert told[weight].weight == "float16" and told[weight].activation == "float"
    graph = load_graph(output / "full.onnx").graph
    node = next(n for n in graph if n.name == site.node)
    assert node.inputs[0].producer().op_type != "DequantizeLinear"  # type: ignore[union-attr]
    assert {tensor.graph for tensor in wide} == {"full"}
    named = {tensor.tensor: tensor for tensor in wide}
    assert node.outputs[0].name in named
    for tensor in wide:
        assert tensor.max > LIMIT and tensor.nodes
        assert {str(n.name) for n in graph} >= set(tensor.nodes)
    logits = activations(output / "full.onnx", source.feeds(), [str(node.outputs[0].name)])
    peak = max(float(np.abs(v).max()) for v in logits.values())
    assert named[str(node.outputs[0].name)].max == pytest.approx(peak, rel=1e-6)
