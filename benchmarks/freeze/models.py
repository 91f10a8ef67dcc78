"""Define the models that `freeze` runs, with the options of each stage, and a custom ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Arguments = tuple[str, ...]

CUSTOM = "custom"
SEED, SIZE, WIDTH, HEADS, HIDDEN, CLASSES = 5, 8, 32, 2, 64, 10


@dataclass(frozen=True, slots=True)
class Model:
    """Hold the options of each stage; `quantize` has those of formats with unusual ones.

    "{folder}" stands for the folder of `save_custom`.
    """

    export: Arguments
    calibrate: Arguments
    validate: Arguments
    quantize: Mapping[str, Arguments] = field(default_factory=dict)

    def options(self, chosen: str) -> Arguments:
        """Return the options of `quantize` for one of FORMATS."""
        return self.quantize.get(chosen, FORMATS[chosen])


FP8 = ("--quantize-method", "fp8")
BLOCKWISE = ("--quantize-method", "blockwise", "--block-size", "32")
FORMATS: dict[str, Arguments] = {
    "w8a8": (),
    "w4a16": (*BLOCKWISE, "--rounding", "gptq"),
    "fp8": FP8,
}
W4A16 = ("--weight-bits", "4", "--activation-bits", "32")  # convolutions have no blocks

PHOTOGRAPHS = ("--images", "skimage:coffee,rocket", "--samples", "4", "--batch-size", "2")
HELD_OUT = ("--images", "skimage:astronaut,chelsea")
CROPS = ("--size", "64")


def tokenizer(name: str, **formats: Arguments) -> Model:
    """Return the stages of an image tokenizer."""
    return Model((name,), (*PHOTOGRAPHS, *CROPS), (*HELD_OUT, *CROPS), formats)


def generator(name: str, calibrate: Arguments = (), **formats: Arguments) -> Model:
    """Return the stages of a generator, which makes its samples itself."""
    some = ("--samples", "4", "--batch-size", "2", *calibrate)
    return Model((name,), some, ("--samples", "2", "--batch-size", "2"), formats)


# Together they cover every way to choose a smoothing scale and to round a weight.
MODELS: dict[str, Model] = {
    "cosmos-mini": tokenizer("cosmos-mini-di8x8", w4a16=(*W4A16, "--bias-correction")),
    "gsq-mini": tokenizer(
        "gsq-mini",
        w8a8=("--smoothing", "0", "--bias-correction"),
        w4a16=("--quantize-method", "log_quantization", *W4A16),
        fp8=(*FP8, "--smoothing", "0.5"),
    ),
    "var-mini": generator(
        "var-mini",
        w8a8=("--adaln-bits", "8", "--exclude", "head"),
        fp8=(*FP8, "--smoothing", "gps"),
    ),
    "rar-mini": generator(
        "rar-mini",
        ("--dgc",),
        w8a8=("--smoothing", "gps", "--bias-correction"),
        fp8=(*FP8, "--smoothing", "0"),
    ),
    "par-mini": generator(
        "par-mini",
        w8a8=("--smoothing", "0.5", "--attention", "int8"),
        w4a16=BLOCKWISE,
        fp8=(*FP8, "--smoothing", "gps", "--attention", "fp8"),
    ),
    "llamagen-mini": generator(
        "llamagen-mini",
        w8a8=("--smoothing", "0", "--rounding", "gptq"),
        w4a16=BLOCKWISE,
        fp8=(*FP8, "--smoothing", "0.5"),
    ),
    "mar-mini": generator(
        "mar-mini",
        w8a8=("--smoothing", "gps", "--rounding", "gptq"),
        fp8=(*FP8, "--smoothing", "0"),
    ),
    CUSTOM: Model(
        ("onnx", "--graph", "{folder}/custom.onnx"),
        ("--feeds", "{folder}/calibration.npz", "--samples", "4", "--batch-size", "2"),
        ("--feeds", "{folder}/held_out.npz"),
        {"w4a16": (*W4A16, "--rounding", "gptq")},
    ),
}


def save_custom(folder: Path) -> None:
    """Write `custom.onnx` and the arrays that calibrate and validate it."""
    onnx.save(custom_model(), folder / "custom.onnx")
    rng = np.random.default_rng(SEED + 1)
    for name, count in (("calibration", 4), ("held_out", 2)):
        images = rng.standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)
        np.savez(folder / f"{name}.npz", image=images)


def custom_model() -> onnx.ModelProto:
    """Return two convolutions and a transformer block: image [n, 3, 8, 8] -> logits [n, 16, 10]."""
    rng, nodes = np.random.default_rng(SEED), list[onnx.NodeProto]()
    constants: dict[str, NDArray[np.generic]] = {}

    def weight(name: str, *shape: int, fan_in: int) -> str:
        constants[name] = (rng.standard_normal(shape) / fan_in**0.5).astype(np.float32)
        return name

    def node(op: str, *inputs: str, output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def convolution(x: str, name: str, channels: int, stride: int) -> str:
        w = weight(f"{name}.weight", WIDTH, channels, 3, 3, fan_in=9 * channels)
        bias = weight(f"{name}.bias", WIDTH, fan_in=WIDTH)
        made = node("Conv", x, w, bias, output=name, pads=[1] * 4, strides=[stride] * 2)
        return node("Relu", made, output=f"{name}.relu")

    def linear(x: str, name: str, rows: int, columns: int) -> str:
        bias = weight(f"{name}.bias", columns, fan_in=columns)
        made = node("MatMul", x, weight(f"{name}.weight", rows, columns, fan_in=rows), output=name)
        return node("Add", made, bias, output=f"{name}.out")

    def norm(x: str, name: str) -> str:
        constants[f"{name}.weight"] = np.exp(0.7 * rng.standard_normal(WIDTH)).astype(np.float32)
        bias = weight(f"{name}.bias", WIDTH, fan_in=WIDTH)
        return node("LayerNormalization", x, f"{name}.weight", bias, output=name, axis=-1)

    def heads(x: str, name: str, perm: list[int]) -> str:
        return node(
            "Transpose", node("Reshape", x, "split", output=f"{name}4"), output=name, perm=perm
        )

    constants["flat"] = np.array([0, WIDTH, -1])
    constants["split"] = np.array([0, 0, HEADS, WIDTH // HEADS])
    constants["join"] = np.array([0, 0, WIDTH])
    constants["root"] = np.array((WIDTH // HEADS) ** -0.5, np.float32)
    x = convolution(convolution("image", "conv1", 3, 2), "conv2", WIDTH, 1)
    x = node(
        "Transpose", node("Reshape", x, "flat", output="flattened"), output="x", perm=[0, 2, 1]
    )
    normed = norm(x, "norm1")
    q, k, v = (linear(normed, name, WIDTH, WIDTH) for name in ("wq", "wk", "wv"))
    raw = node("MatMul", heads(q, "q", [0, 2, 1, 3]), heads(k, "k", [0, 2, 3, 1]), output="raw")
    scores = node("Softmax", node("Mul", raw, "root", output="scaled"), output="p", axis=-1)
    mixed = node("MatMul", scores, heads(v, "v", [0, 2, 1, 3]), output="mixed")
    joined = node("Transpose", mixed, output="joined4", perm=[0, 2, 1, 3])
    joined = node("Reshape", joined, "join", output="joined")
    x = node("Add", x, linear(joined, "proj", WIDTH, WIDTH), output="x1")
    hidden = node("Gelu", linear(norm(x, "norm2"), "fc1", WIDTH, HIDDEN), output="gelu")
    x = node("Add", x, linear(hidden, "fc2", HIDDEN, WIDTH), output="x2")
    logits = linear(x, "head", WIDTH, CLASSES)
    shapes: dict[str, list[str | int | None]] = {
        "image": ["n", 3, SIZE, SIZE],
        logits: ["n", SIZE * SIZE // 4, CLASSES],
    }
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, CUSTOM, ends[:1], ends[1:], held)
    opset = [helper.make_opsetid("", 20)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=9)
    onnx.checker.check_model(model)
    return model
