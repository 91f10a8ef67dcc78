"""Make valid files of the kinds that the fuzzer changes, as small as they can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...calibrate.statistics import TensorStats, save_statistics
from ...families.custom.canonical import read_custom_graph
from ...families.custom.sites import find_custom_sites
from ...graph.sites import SiteMap
from ...numerics.packing import save_packed_weights
from ...numerics.scheme import ActivationFormat, Plan, SitePlan, WeightFormat
from ...numerics.weight import quantize_weight
from ...validate.metrics.latency import Cpu
from ...validate.metrics.outputs import OutputAccuracy
from ...validate.report.schema import Data, Report, sizes
from ...workspace.files import encode_json

SIDE = 8  # channels of the small product


def product() -> onnx.ModelProto:
    """Return a graph of two linears with a norm and an activation, and a convolution behind."""
    rng = np.random.default_rng(0)
    tensors = {
        "fc1.weight": rng.normal(size=(SIDE, 2 * SIDE)),
        "fc1.bias": rng.normal(size=2 * SIDE),
        "norm.weight": rng.normal(size=2 * SIDE),
        "norm.bias": rng.normal(size=2 * SIDE),
        "fc2.weight": rng.normal(size=(2 * SIDE, SIDE)),
        "conv.weight": rng.normal(size=(4, 1, 3, 3)),
    }
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in tensors.items()]
    constants.append(numpy_helper.from_array(np.array([-1, 1, SIDE // 2, 2], np.int64), "shape"))
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "fc1.weight"], ["a"], name="fc1"),
        node("Add", ["a", "fc1.bias"], ["b"], name="bias"),
        node("LayerNormalization", ["b", "norm.weight", "norm.bias"], ["c"], name="norm", axis=-1),
        node("Relu", ["c"], ["d"], name="act"),
        node("MatMul", ["d", "fc2.weight"], ["e"], name="fc2"),
        node("Reshape", ["e", "shape"], ["f"], name="map"),
        node("Conv", ["f", "conv.weight"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, SIDE // 2, 2])],
    )
    graph = helper.make_graph(nodes, "product", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def tokenizer_graphs() -> dict[str, bytes]:
    """Return an encoder that says its stride and codes, and a decoder, as `decode` opens them."""
    float_, int_ = TensorProto.FLOAT, TensorProto.INT32
    info = helper.make_tensor_value_info
    images = info("image", float_, ["n", 3, "h", "w"])
    codes = info("indices", int_, ["n", "h", "w"])
    latent = info("latent", float_, ["n", 3, "h", "w"])
    encoder = helper.make_graph(
        [
            helper.make_node("Identity", ["image"], ["latent"]),
            helper.make_node("ReduceSum", ["image", "axes"], ["sum"], keepdims=0),
            helper.make_node("Cast", ["sum"], ["indices"], to=int_),
        ],
        "encoder",
        [images],
        [codes, latent],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    decoder = helper.make_graph(
        [
            helper.make_node("Cast", ["indices"], ["f"], to=float_),
            helper.make_node("Unsqueeze", ["f", "axes"], ["g"]),
            helper.make_node("Concat", ["g", "g", "g"], ["image"], axis=1),
        ],
        "decoder",
        [codes],
        [images],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    found = {}
    for name, graph in (("encoder", encoder), ("decoder", decoder)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        helper.set_model_props(model, {"arvg_trt.stride": "1", "arvg_trt.codebook_size": "64"})
        found[f"{name}.onnx"] = model.SerializeToString()
    return found


def saver(save: Callable[..., None], arrays: Mapping[str, Any]) -> Callable[[Path], None]:
    """Return a function that writes arrays to a file with numpy."""
    return lambda path: save(path, **arrays)


def exported(scratch: Path) -> tuple[SiteMap, bytes]:
    """Return the small product as exported: its sites, and its graph with the weights inside."""
    source = scratch / "product.onnx"
    source.write_bytes(product().SerializeToString())
    model = read_custom_graph(source)
    sites = find_custom_sites(model.graph, "model")
    ir.save(model, scratch / "exported.onnx")
    data = (scratch / "exported.onnx").read_bytes()
    return SiteMap(sites=tuple(sites), graphs=("model",)), data


def plan() -> Plan:
    """Return a plan that a person edited."""
    whole = ActivationFormat(bits=8, scale=0.02, shift=3)
    return Plan(
        sites=(
            SitePlan(name="fc1", weight=WeightFormat(bits=8), activation=whole, smoothing=0.5),
            SitePlan(name="fc2", weight=WeightFormat(bits=4, grid="log"), reason="by hand"),
            SitePlan(name="conv", reason="excluded by --exclude or the recipe"),
        )
    )


def specs() -> dict[str, dict[str, Any]]:
    """Return the `generator.json` of each family."""
    defaults = {"cfg": 1.5, "top_k": 0, "top_p": 0.95, "temperature": 1.0}
    sizes = {"vocab_size": 64, "depth": 2, "width": 32, "heads": 2, "head_dim": 16}
    raster = {"side": 4, "num_classes": 10, "image_size": 32, "kv_type": "float32", **sizes}
    var = {"patch_nums": [1, 2], "latent_channels": 4, "latent_size": 2, **sizes}
    mar = {"side": 4, "latent_channels": 4, "num_classes": 10, "image_size": 32}
    powers = {"cfg_power": 1.0}
    return {
        "var": {**var, "num_classes": 10, "image_size": 32, "defaults": defaults},
        "rar": {**raster, "defaults": defaults | powers},
        "par": {**raster, "group": 4, "defaults": defaults},
        "llamagen": {**raster, "defaults": defaults},
        "mar": {**mar, "defaults": {"cfg": 2.0, "iterations": 4, "diffusion_steps": 10} | powers},
    }


def report_bytes() -> bytes:
    """Return a report of a custom graph."""
    accuracy = OutputAccuracy(output="y", sqnr_db=31.5, max_error=0.02, cosine=0.999)
    return encode_json(
        Report(
            model="onnx",
            name="int8",
            versions={"numpy": "2"},
            cpu=Cpu(model="a processor", flags=("avx2",)),
            data=Data(validation=("feeds:0",), calibration=("feeds:1",)),
            sizes=sizes(
                fp32_graph_bytes={"model": 4096},
                fp32_weight_bytes=4000,
                packed_weight_bytes=1000,
                fp32_running_bytes=4096,
                running_bytes={"qdq": 1500},
            ),
            accuracy={},
            outputs={"qdq": (accuracy,)},
        )
    )


def write_statistics(path: Path) -> None:
    """Write statistics of the small product's linears."""
    stats = {
        name: TensorStats(-np.ones(n), np.ones(n), np.full(n, 7.0), count)
        for name, n, count in (
            ("fc1", SIDE, 12),
            ("fc2", 2 * SIDE, np.full(2 * SIDE, 12, np.int64)),
        )
    }
    save_statistics(stats, path, export="00" * 32)


def write_packed_weights(path: Path, weight: NDArray[np.float32]) -> None:
    """Write a weight as it is, and packed in 4 bits."""
    packed = {"fc1": quantize_weight(weight, WeightFormat(bits=4))}
    save_packed_weights(packed, {"b": weight}, path)
