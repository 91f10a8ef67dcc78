"""Q/DQ forms of linears against a float64 simulation, and a whole model of linears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from PIL import Image

from arvg_trt.calibrate.calibration_run import CalibrationRun
from arvg_trt.calibrate.statistics import TensorStats
from arvg_trt.errors import RecipeError
from arvg_trt.graph.sites import Site, SiteMap
from arvg_trt.quantize.plan import check_plan, make_plan
from arvg_trt.quantize.qdq.convolution import insert_qdq
from arvg_trt.quantize.run import quantize_model
from arvg_trt.recipe.quantize import QuantizeOptions
from arvg_trt.runtime.images import load_image, to_model
from arvg_trt.runtime.sessions.open import reference_session

from ...families.tiny import silent
from .linear_cases import FLOAT_LINEARS, INTEGER_LINEARS, LinearCase, make_linear_case


def rewritten(case: LinearCase) -> onnx.ModelProto:
    model = case.model()
    insert_qdq(model.graph, [case.site], {case.site.name: case.chosen})
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def reference_run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (out,) = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})
    return np.asarray(out)


@pytest.mark.parametrize("label", INTEGER_LINEARS | FLOAT_LINEARS)
def test_graph_computes_what_float64_simulation_says(label: str) -> None:
    case = (INTEGER_LINEARS | FLOAT_LINEARS)[label]()
    found = reference_run(rewritten(case), case.x)
    np.testing.assert_allclose(found, case.expected, atol=2e-6 * np.abs(case.expected).max())


@pytest.mark.parametrize("label", INTEGER_LINEARS)
def test_an_output_inside_the_graph_keeps_its_name(label: str) -> None:
    """A site's output is all of its product, with any bias."""
    case = INTEGER_LINEARS[label]()
    graph = case.proto.graph
    graph.node.append(onnx.helper.make_node("Identity", ["out"], ["end"], name="end"))
    graph.output[0].name = "end"
    proto = rewritten(case)
    shown = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    proto.graph.output.insert(0, shown)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    found, end = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": case.x})
    np.testing.assert_array_equal(found, end)
    np.testing.assert_allclose(found, case.expected, atol=2e-6 * np.abs(case.expected).max())


@pytest.mark.parametrize("label", INTEGER_LINEARS)
def test_both_sides_of_a_product_have_one_scalar_scale_and_no_zero_point(label: str) -> None:
    graph = rewritten(INTEGER_LINEARS[label]()).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    (product,) = [n for n in graph.node if n.op_type == "MatMul"]
    makers = {n.output[0]: n for n in graph.node}
    for name in product.input:
        assert makers[name].op_type == "DequantizeLinear"
        _, scale, zero = makers[name].input
        assert constants[scale].shape == () and not constants[zero].any()
    factor = [n for n in graph.node if n.name.endswith("Mul_factor")]
    assert len(factor) == (0 if label == "one scale for the weight" else 1)
    for node in factor:
        assert node.input[0] == product.output[0]
        assert np.median(constants[node.input[1]]) == pytest.approx(1)


def test_gemm_with_a_factor_is_refused_by_name() -> None:
    case = make_linear_case(op="GemmT", rank=2)
    case.proto.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", 0.5))
    with pytest.raises(RecipeError, match=r"block\.linear is a Gemm with alpha"):
        rewritten(case)


def linear_model(folder: Path) -> SiteMap:
    """Patches of 8x8 -> LayerNorm -> linears -> latent, and back: a model without convolutions."""
    rng = np.random.default_rng(2)
    width, wide = 192, 96
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    sites: list[Site] = []
    ends = {"encoder": ("image", "latent"), "decoder": ("latent", "image")}
    for graph, (source, target) in ends.items():
        inputs, outputs = (width, wide) if graph == "encoder" else (wide, width)
        constants = {
            "gamma": np.exp(rng.normal(0, 0.5, inputs)),
            "beta": rng.normal(0, 0.5, inputs),
            "w1": rng.normal(0, inputs**-0.5, (inputs, 128)),
            "b1": rng.normal(0, 0.3, 128),
            "w2": rng.normal(0, 128**-0.5, (128, outputs)),
        }
        tensors = {name: value.astype(np.float32) for name, value in constants.items()}
        tensors["patches"] = np.array([0, 3, 4, 8, 4, 8])
        tensors["rows"] = np.array([0, 16, -1])
        if graph == "encoder":
            before = [
                make("Reshape", [source, "patches"], ["split"], name="split"),
                make("Transpose", ["split"], ["turned"], name="turn", perm=[0, 2, 4, 1, 3, 5]),
                make("Reshape", ["turned", "rows"], ["tokens"], name="rows"),
            ]
        else:
            before = [make("Identity", [source], ["tokens"], name="tokens")]
        nodes = [
            *before,
            make("LayerNormalization", ["tokens", "gamma", "beta"], ["normed"], name="norm"),
            make("MatMul", ["normed", "w1"], ["product"], name="fc1"),
            make("Add", ["product", "b1"], ["hidden"], name="add"),
            make("Gelu", ["hidden"], ["active"], name="gelu"),
            make("MatMul", ["active", "w2"], [target], name="fc2"),
        ]
        first = ["n", 3, 32, 32] if graph == "encoder" else ["n", 16, inputs]
        proto = onnx.helper.make_model(
            onnx.helper.make_graph(
                nodes,
                graph,
                [info(source, onnx.TensorProto.FLOAT, first)],
                [info(target, onnx.TensorProto.FLOAT, ["n", 16, outputs])],
                [onnx.numpy_helper.from_array(v, k) for k, v in tensors.items()],
            ),
            opset_imports=[onnx.helper.make_opsetid("", 21)],
            ir_version=10,
        )
        proto = onnx.shape_inference.infer_shapes(proto)
        onnx.save(proto, folder / f"{graph}.onnx")
        for name, weight, tensor, output in (
            ("fc1", "w1", "normed", "product"),
            ("fc2", "w2", "active", target),
        ):
            sites.append(
                Site(
                    name=f"{graph}.{name}",
                    graph=graph,
                    role=name,
                    op="MatMul",
                    node=name,
                    weight=weight,
                    bias=None,
                    input=tensor,
                    output=output,
                    weight_shape=tensors[weight].shape,
                    channel_axis=2,
                    fold=("gamma", "beta") if name == "fc1" else None,
                )
            )
    return SiteMap(sites=tuple(sites))


def activations(path: Path, feeds: dict[str, np.ndarray], names: list[str]) -> list[np.ndarray]:
    model = onnx.load(path)
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
        for n in names
        if n not in known
    )
    session = ort.InferenceSession(model.SerializeToString())
    return [np.asarray(v, np.float64) for v in session.run(names, feeds)]


def test_model_of_linears_is_calibrated_and_quantized_like_one_of_convolutions(
    tmp_path: Path, samples: Path
) -> None:
    export, output = tmp_path / "export", tmp_path / "out"
    export.mkdir()
    output.mkdir()
    sites = linear_model(export)
    files = sorted(samples.glob("*.png"))
    images = np.concatenate([to_model(load_image(f))[:, :, :32, :32] for f in files])
    cropped = tmp_path / "samples"
    cropped.mkdir()
    for k, image in enumerate(images):
        pixels = np.rint((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
        Image.fromarray(pixels).save(cropped / f"{k:04}.png")

    statistics = CalibrationRun(export, cropped, sites.graphs, 2, silent).channel_ranges(sites)
    names = ["normed", "active", "latent"]
    normed, active, latent = activations(export / "encoder.onnx", {"image": images}, names)
    for site, value in (("encoder.fc1", normed), ("encoder.fc2", active)):
        stats: TensorStats = statistics[site]
        np.testing.assert_allclose(stats.low, value.min(axis=(0, 1)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats.high, value.max(axis=(0, 1)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(stats.square, np.square(value).sum(axis=(0, 1)), rtol=1e-5)
        assert stats.count == value.shape[0] * value.shape[1]

    options = QuantizeOptions()
    plan, results = quantize_model(
        CalibrationRun(export, cropped, sites.graphs, 2, silent),
        output,
        sites,
        check_plan(make_plan(sites, options), sites),
        statistics,
        options,
        shared=False,
    )
    chosen = {entry.name: entry.activation for entry in plan.sites}
    assert all(a is not None and a.scale is not None for a in chosen.values())
    assert all(r.weight == "INT8 per-channel" for r in results)
    found = reference_session(output / "encoder.onnx").run({"image": images})["latent"]
    noise = np.square(found - latent).sum() / np.square(latent).sum()
    assert 1e-7 < noise < 1e-3
    kinds = [n.op_type for n in onnx.load(output / "encoder.onnx").graph.node]
    assert kinds.count("DequantizeLinear") == 4
