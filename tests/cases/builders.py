"""Small models of the kinds that were reported against quantizers, each as its reporters had it.

Every function writes the files of one case into a folder, with a `feeds.npz`; a file `order.txt`
names several graphs in the order that they run. Weights come from one seed, drawn in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh


class Case:
    """The folder of a case and its random numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)

    def w(self, name: str, *shape: int, scale: float | None = None) -> onnx.TensorProto:
        """A normal weight, by default divided by the root of its fan."""
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = self.normal(*shape) * np.float32(scale or fan**-0.5)
        return nh.from_array(values, name)

    def normal(self, *shape: int) -> NDArray[np.float32]:
        return self.rng.standard_normal(shape).astype(np.float32)

    def save(
        self,
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        weights: Sequence[onnx.TensorProto],
        opset: int = 17,
        ir: int = 8,
        file: str = "model.onnx",
        domain: str = "",
    ) -> onnx.ModelProto:
        graph = h.make_graph(nodes, "g", inputs, outputs, weights)
        imports = [h.make_opsetid(domain, opset)]
        model = h.make_model(graph, opset_imports=imports, ir_version=ir)
        onnx.save(model, self.folder / file)
        return model

    def feeds(self, **arrays: NDArray[Any]) -> None:
        np.savez(self.folder / "feeds.npz", **arrays)  # type: ignore[arg-type]


def vi(name: str, shape: Any, kind: int = T.FLOAT) -> onnx.ValueInfoProto:
    return h.make_tensor_value_info(name, kind, shape)


CASES: dict[str, Callable[[Case], None]] = {}


def case(function: Callable[[Case], None]) -> Callable[[Case], None]:
    CASES[function.__name__] = function
    return function


@case
def zero_means_dynamic(c: Case) -> None:
    """A size 0 in a declared input is taken as dynamic (ONNX Runtime does), or one clear line.

    Reported: microsoft/onnxruntime #23600 (note on dim_value 0); silero-vad ships such a file.
    """
    images = c.normal(8, 3, 16, 16)

    c.save(
        [
            h.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Conv", ["r", "w2"], ["c"], pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["y"]),
        ],
        [vi("x", [0, 3, 0, 0])],
        [vi("y", [0, 4, 0, 0])],
        [c.w("w1", 16, 3, 3, 3), c.w("b1", 16), c.w("w2", 16, 16, 3, 3), c.w("w3", 4, 16, 1, 1)],
    )
    c.feeds(x=images)


@case
def masked_logits(c: Case) -> None:
    """An output with -inf at masked places is compared where it is finite; the file is taken.

    Reported: microsoft/onnxruntime #23749 and NVIDIA/TensorRT #2628 (infinities and NaN of masks).
    """
    mask = np.zeros(32, np.float32)
    mask[24:] = -np.inf  # tokens that are never allowed
    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "w2"], ["l"]),
            h.make_node("Add", ["l", "mask"], ["logits"]),
        ],
        [vi("x", ["n", 5, 16])],
        [vi("logits", ["n", 5, 32])],
        [c.w("w1", 16, 64, scale=0.25), c.w("w2", 64, 32, scale=0.12), nh.from_array(mask, "mask")],
    )
    c.feeds(x=c.normal(8, 5, 16))


@case
def pruned_channels(c: Case) -> None:
    """All-zero output channels and a tensor that is 0 for every sample get a positive scale;
    finite outputs, TensorRT parses.

    Reported: apple/coremltools #2853, NVIDIA/TensorRT #1826 and #2498 (scale 0 of all-zero
    channels).
    """
    images = c.normal(8, 3, 16, 16)

    first, second, third = (
        np.array(nh.to_array(c.w("t", *s))) for s in ((16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3))
    )
    second[[0, 3, 7]] = 0
    third[:] = 0  # a whole layer that was pruned
    c.save(
        [
            h.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Conv", ["r", "w2", "b2"], ["c"], pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Min", ["s", "zero"], ["dead"]),
            h.make_node("Conv", ["dead", "w3"], ["d"], pads=[1] * 4),
            h.make_node("Add", ["s", "d"], ["e"]),
            h.make_node("Conv", ["e", "w4"], ["y"]),
        ],
        [vi("x", ["n", 3, 16, 16])],
        [vi("y", ["n", 4, 16, 16])],
        [
            nh.from_array(first, "w1"),
            nh.from_array(second, "w2"),
            nh.from_array(np.zeros(16, np.float32), "b2"),
            nh.from_array(third, "w3"),
            c.w("w4", 4, 16, 1, 1),
            nh.from_array(np.float32(0), "zero"),
        ],
    )
    c.feeds(x=images)


@case
def grouped_convtranspose(c: Case) -> None:
    """Transposed (grouped) convolutions stay in high precision, listed with the reason; the
    rest is INT8; TensorRT builds.

    Reported: NVIDIA/TensorRT #1934, microsoft/onnxruntime #19694.
    """
    images = c.normal(8, 3, 16, 16)

    c.save(
        [
            h.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node(
                "ConvTranspose",
                ["r", "w2", "b2"],
                ["c"],
                strides=[2, 2],
                kernel_shape=[2, 2],
                group=4,
            ),
            h.make_node("Conv", ["c", "w3"], ["d"], pads=[1] * 4),
            h.make_node("Relu", ["d"], ["s"]),
            h.make_node("Conv", ["s", "w4"], ["y"]),
        ],
        [vi("x", ["n", 3, 16, 16])],
        [vi("y", ["n", 4, 32, 32])],
        [
            c.w("w1", 16, 3, 3, 3),
            c.w("w2", 16, 4, 2, 2),
            c.w("b2", 16),
            c.w("w3", 16, 16, 3, 3),
            c.w("w4", 4, 16, 1, 1),
        ],
    )
    c.feeds(x=images)


@case
def siamese_weights(c: Case) -> None:
    """One weight in two branches: both are quantized or say why not, the weight is stored
    once, results as the file.

    Reported: neuralmagic/sparseml #390, openvinotoolkit/nncf #235, onnx/ir-py #406 (weights
    used by several layers).
    """
    c.save(
        [h.make_node("Conv", [x, "w1", "b1"], [f"{x}1"], pads=[1] * 4) for x in "pq"]
        + [h.make_node("Relu", [f"{x}1"], [f"{x}2"]) for x in "pq"]
        + [h.make_node("Conv", [f"{x}2", "w2", "b1"], [f"{x}3"], pads=[1] * 4) for x in "pq"]
        + [h.make_node("Sub", ["p3", "q3"], ["d"]), h.make_node("Conv", ["d", "w3"], ["y"])],
        [vi("p", ["n", 3, 16, 16]), vi("q", ["n", 3, 16, 16])],
        [vi("y", ["n", 4, 16, 16])],
        [c.w("w1", 16, 3, 3, 3), c.w("b1", 16), c.w("w2", 16, 16, 3, 3), c.w("w3", 4, 16, 1, 1)],
    )
    picture = c.normal(8, 3, 16, 16)
    c.feeds(p=picture, q=(picture * 3 + 1).astype(np.float32))


@case
def subgraph_weights(c: Case) -> None:
    """Both branches may have initializers of one name; products in them are listed, those
    outside quantized; result as the file.

    Reported: microsoft/onnxruntime #8488, #19418, #7977 (weights of If branches, same names
    in both).
    """

    def branch(sign):
        return h.make_graph(
            [
                h.make_node("MatMul", ["r", "wb"], ["t"]),
                h.make_node("MatMul", ["t", "outer"], ["o"]),
            ],
            f"b{sign}",
            [],
            [vi("o", None)],
            [c.w("wb", 64, 64, scale=sign * 0.12)],
        )

    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "outer"], ["u"]),
            h.make_node("If", ["flag"], ["z"], then_branch=branch(1), else_branch=branch(2)),
            h.make_node("Add", ["u", "z"], ["v"]),
            h.make_node("MatMul", ["v", "w3"], ["y"]),
        ],
        [vi("x", ["n", 16]), vi("flag", [], T.BOOL)],
        [vi("y", ["n", 8])],
        [
            c.w("w1", 16, 64, scale=0.25),
            c.w("outer", 64, 64, scale=0.12),
            c.w("w3", 64, 8, scale=0.12),
        ],
    )
    c.feeds(x=c.normal(8, 16), flag=np.array([True, False] * 4))


@case
def initializers_are_inputs(c: Case) -> None:
    """Weights that are also graph inputs (IR 3, opset 8) are weights; nobody has to feed them.

    Reported: microsoft/onnxruntime #7977 (invalid weight name found in the graph); every IR 3 file.
    """
    images = c.normal(8, 3, 16, 16)

    held = [c.w("w1", 16, 3, 3, 3), c.w("b1", 16), c.w("w2", 16, 16, 3, 3), c.w("w3", 4, 16, 1, 1)]
    c.save(
        [
            h.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Conv", ["r", "w2"], ["c"], pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["y"]),
        ],
        [vi("x", [1, 3, 16, 16])] + [vi(t.name, list(t.dims)) for t in held],
        [vi("y", [1, 4, 16, 16])],
        held,
        opset=8,
        ir=3,
    )
    c.feeds(x=images)


@case
def empty_past(c: Case) -> None:
    """A KV-cache graph whose past has length 0 is calibrated and validated; TensorRT profile
    allows 0.

    Reported: microsoft/onnxruntime #23600 (statistics of tensors without elements).
    """
    c.save(
        [
            h.make_node("MatMul", ["x", "wq"], ["q"]),
            h.make_node("MatMul", ["x", "wk"], ["k"]),
            h.make_node("MatMul", ["x", "wv"], ["v"]),
            h.make_node("Concat", ["past_k", "k"], ["k_all"], axis=1),
            h.make_node("Concat", ["past_v", "v"], ["v_all"], axis=1),
            h.make_node("MatMul", ["past_k", "wx"], ["old"]),
            h.make_node("ReduceSum", ["old", "ax"], ["olds"]),
            h.make_node("Transpose", ["k_all"], ["kt"], perm=[0, 2, 1]),
            h.make_node("MatMul", ["q", "kt"], ["s"]),
            h.make_node("Softmax", ["s"], ["p"]),
            h.make_node("MatMul", ["p", "v_all"], ["o"]),
            h.make_node("MatMul", ["o", "wo"], ["m"]),
            h.make_node("Add", ["m", "olds"], ["y"]),
        ],
        [vi("x", ["n", "t", 32]), vi("past_k", ["n", "past", 32]), vi("past_v", ["n", "past", 32])],
        [vi("y", ["n", "t", 32]), vi("k_all", ["n", "all", 32]), vi("v_all", ["n", "all", 32])],
        [c.w(n, 32, 32) for n in ("wq", "wk", "wv", "wo", "wx")]
        + [nh.from_array(np.array([1]), "ax")],
    )
    c.feeds(
        x=c.normal(8, 4, 32),
        past_k=np.zeros((8, 0, 32), np.float32),
        past_v=np.zeros((8, 0, 32), np.float32),
    )


@case
def conv1d_audio(c: Case) -> None:
    """1-D convolutions are quantized, or listed with the reason; the report says what share
    of the work stays float.

    Reported: the silero-vad and basic-pitch packages; no single report found.
    """
    c.save(
        [
            h.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Conv", ["r", "w2"], ["c"], pads=[1, 1]),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["y"]),
        ],
        [vi("x", ["n", 1, 64])],
        [vi("y", ["n", 4, 64])],
        [c.w("w1", 32, 1, 3), c.w("w2", 32, 32, 3), c.w("w3", 4, 32, 1)],
    )
    c.feeds(x=c.normal(8, 1, 64))


@case
def gemm_bias_forms(c: Case) -> None:
    """Gemm with C a scalar, [1], [1, N], [M, 1], [N] or none: same result as the file at
    every stage.

    Reported: microsoft/onnxruntime #14229 (bias of Gemm), ONNX: C is broadcast to [M, N].
    """
    width = 32
    shapes = {"s": (), "one": (1,), "row": (1, width), "col": (4, 1), "vec": (width,)}
    nodes, weights, x = [], [], "x"
    for k, (name, shape) in enumerate(shapes.items()):
        weights += [
            c.w(f"w_{name}", width, width),
            nh.from_array((c.rng.standard_normal(shape) * 0.5).astype(np.float32), f"b_{name}"),
        ]
        nodes += [
            h.make_node("Gemm", [x, f"w_{name}", f"b_{name}"], [f"g{k}"], transB=k % 2),
            h.make_node("Relu", [f"g{k}"], [f"r{k}"]),
        ]
        x = f"r{k}"
    nodes += [h.make_node("Gemm", [x, "w_last"], ["y"])]
    c.save(
        nodes, [vi("x", [4, width])], [vi("y", [4, width])], [*weights, c.w("w_last", width, width)]
    )
    c.feeds(x=c.normal(32, width))


@case
def gemm_alpha_beta(c: Case) -> None:
    """Gemm with alpha 0.5 and beta 2 (constant weight) is rewritten and quantized, or listed
    with the reason.

    Reported: NVIDIA/Model-Optimizer ONNX PTQ and microsoft/onnxruntime Gemm quantization:
    alpha, beta, transA.
    """
    c.save(
        [
            h.make_node("Gemm", ["x", "w1", "b1"], ["a"], alpha=0.5, beta=2.0),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Gemm", ["r", "w2", "b1"], ["c"], alpha=0.5, transB=1),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("MatMul", ["s", "w3"], ["y"]),
        ],
        [vi("x", ["n", 32])],
        [vi("y", ["n", 8])],
        [c.w("w1", 32, 32), c.w("b1", 32), c.w("w2", 32, 32), c.w("w3", 32, 8)],
    )
    c.feeds(x=c.normal(32, 32))


@case
def concat_of_one(c: Case) -> None:
    """A Concat of one tensor does no harm.

    Reported: microsoft/onnxruntime-inference-examples #84 (DenseNet: Concat with a single input).
    """
    images = c.normal(8, 3, 16, 16)

    c.save(
        [
            h.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
            h.make_node("Concat", ["a"], ["b"], axis=1),
            h.make_node("Relu", ["b"], ["r"]),
            h.make_node("Conv", ["r", "w2"], ["c"], pads=[1] * 4),
            h.make_node("Concat", ["c", "r"], ["d"], axis=1),
            h.make_node("Concat", ["d"], ["e"], axis=1),
            h.make_node("Conv", ["e", "w3"], ["f"], pads=[1] * 4),
            h.make_node("Conv", ["f", "w4"], ["y"]),
        ],
        [vi("x", ["n", 3, 16, 16])],
        [vi("y", ["n", 4, 16, 16])],
        [
            c.w("w1", 16, 3, 3, 3),
            c.w("w2", 16, 16, 3, 3),
            c.w("w3", 16, 32, 3, 3),
            c.w("w4", 4, 16, 1, 1),
        ],
    )
    c.feeds(x=images)


@case
def half_model(c: Case) -> None:
    """A float16 file is taken (widened) or refused in one line that says it is float16 and
    what to do.

    Reported: microsoft/onnxruntime #22741, pytorch #107023, onnxconverter-common #304
    (float16 files).
    """

    def f16(t: onnx.TensorProto) -> onnx.TensorProto:
        return nh.from_array(nh.to_array(t).astype(np.float16), t.name)

    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "w2"], ["y"]),
        ],
        [vi("x", ["n", 16], T.FLOAT16)],
        [vi("y", ["n", 8], T.FLOAT16)],
        [f16(c.w("w1", 16, 64, scale=0.25)), f16(c.w("w2", 64, 8, scale=0.12))],
    )
    c.feeds(x=c.rng.standard_normal((8, 16)).astype(np.float16))


@case
def already_qdq(c: Case) -> None:
    """A Q/DQ file is refused in one line that says that it is already quantized.

    Reported: NVIDIA/TensorRT #4542, #17738 of onnxruntime: files that were quantized before.
    """
    codes = nh.from_array(c.rng.integers(-127, 128, (32, 32)).astype(np.int8), "w1")
    step = nh.from_array(np.float32(0.02), "s")
    zero = nh.from_array(np.int8(0), "z")
    c.save(
        [
            h.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            h.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            h.make_node("DequantizeLinear", ["w1", "s", "z"], ["w1d"]),
            h.make_node("MatMul", ["xd", "w1d"], ["a"]),
            h.make_node("Relu", ["a"], ["y"]),
        ],
        [vi("x", ["n", 32])],
        [vi("y", ["n", 32])],
        [codes, step, zero],
    )
    c.feeds(x=c.normal(8, 32))


@case
def same_io_names(c: Case) -> None:
    """Two files of one name can be given (or one line says how), and equal names of inputs
    and outputs do not mix up feeds or report.

    Reported: huggingface/optimum's folder layout (encoder/model.onnx, decoder/model.onnx); no
    single report found.
    """
    for k, (i, o) in enumerate(((16, 32), (32, 16))):
        c.save(
            [
                h.make_node("MatMul", ["input", "w1"], ["a"]),
                h.make_node("Relu", ["a"], ["r"]),
                h.make_node("MatMul", ["r", "w2"], ["output"]),
            ],
            [vi("input", ["n", i])],
            [vi("output", ["n", o])],
            [c.w("w1", i, 64, scale=0.2), c.w("w2", 64, o, scale=0.12)],
            file=("encoder.onnx", "decoder.onnx")[k],
        )
    c.feeds(**{"encoder/input": c.normal(8, 16), "decoder/input": c.normal(8, 32)})
    (c.folder / "order.txt").write_text("encoder.onnx decoder.onnx")


@case
def unused_input(c: Case) -> None:
    """An input that nothing reads (an attention_mask that export folded away) does not stop
    any stage, TensorRT included.

    Reported: fabio-sim/LightGlue-ONNX #22, NVIDIA/trt-samples-for-hackathon-cn #35 (inputs
    that nothing reads).
    """
    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "w2"], ["y"]),
        ],
        [vi("x", ["n", "t", 16]), vi("attention_mask", ["n", "t"], T.INT64)],
        [vi("y", ["n", "t", 8])],
        [c.w("w1", 16, 64, scale=0.25), c.w("w2", 64, 8, scale=0.12)],
    )
    c.feeds(x=c.normal(8, 5, 16), attention_mask=np.ones((8, 5), np.int64))


@case
def constant_and_passed_outputs(c: Case) -> None:
    """An output that is a constant, and one that is an input passed through, are kept under
    their names at every stage.

    Reported: own idea from the list of odd forms (anchors as outputs of detectors).
    """
    images = c.normal(8, 3, 16, 16)

    c.save(
        [
            h.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Conv", ["r", "w2"], ["c"], pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["y"]),
            h.make_node(
                "Constant",
                [],
                ["anchors"],
                value=nh.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), ""),
            ),
            h.make_node("Identity", ["x"], ["same"]),
        ],
        [vi("x", ["n", 3, 16, 16])],
        [vi("y", ["n", 4, 16, 16]), vi("anchors", [3, 4]), vi("same", ["n", 3, 16, 16])],
        [c.w("w1", 16, 3, 3, 3), c.w("w2", 16, 16, 3, 3), c.w("w3", 4, 16, 1, 1)],
    )
    c.feeds(x=images)


@case
def nan_in_padded_rows(c: Case) -> None:
    """Rows that are NaN inside and dropped before the output: calibrated on the others, or
    one line that names the sample and the tensor.

    Reported: microsoft/onnxruntime #23749 (padded tokens are NaN inside and do not reach the
    result).
    """
    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Where", ["keep", "zero", "ninf"], ["m"]),
            h.make_node("Add", ["a", "m"], ["s"]),
            h.make_node("Softmax", ["s"], ["p"], axis=-1),
            h.make_node("MatMul", ["p", "w2"], ["b"]),
            h.make_node("Relu", ["b"], ["c"]),
            h.make_node("MatMul", ["c", "w3"], ["d"]),
            h.make_node("Where", ["keep", "d", "zero"], ["y"]),
        ],
        [vi("x", ["n", 6, 16]), vi("keep", ["n", 6, 1], T.BOOL)],
        [vi("y", ["n", 6, 16])],
        [
            c.w("w1", 16, 32, scale=0.25),
            c.w("w2", 32, 32, scale=0.2),
            c.w("w3", 32, 16, scale=0.2),
            nh.from_array(np.float32(0), "zero"),
            nh.from_array(np.float32(-np.inf), "ninf"),
        ],
    )
    keep = np.ones((8, 6, 1), bool)
    keep[:, 4:] = False
    c.feeds(x=c.normal(8, 6, 16), keep=keep)


@case
def uint8_nhwc_input(c: Case) -> None:
    """Uint8 pictures in feeds are taken; --images names why it cannot feed this input.

    Reported: own idea from the list of odd forms (tf2onnx inputs).
    """
    c.save(
        [
            h.make_node("Cast", ["image"], ["f"], to=T.FLOAT),
            h.make_node("Div", ["f", "k"], ["g"]),
            h.make_node("Transpose", ["g"], ["x"], perm=[0, 3, 1, 2]),
            h.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Conv", ["r", "w2"], ["c"], pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["d"]),
            h.make_node("ArgMax", ["d"], ["label"], axis=1, keepdims=0),
        ],
        [vi("image", ["n", 16, 16, 3], T.UINT8)],
        [vi("label", ["n", 16, 16], T.INT64)],
        [
            c.w("w1", 16, 3, 3, 3),
            c.w("b1", 16),
            c.w("w2", 16, 16, 3, 3),
            c.w("w3", 4, 16, 1, 1),
            nh.from_array(np.float32(255), "k"),
        ],
    )
    c.feeds(image=c.rng.integers(0, 256, (8, 16, 16, 3)).astype(np.uint8))


@case
def weight_norm(c: Case) -> None:
    """Weights that constants alone compute (g * v / |v|, Transpose, Reshape) are folded and
    quantized, or the reason is right.

    Reported: pytorch/glow #4660, onnxruntime/mobius #34 (weights behind Transpose, Reshape,
    arithmetic are not seen as constants).
    """
    images = c.normal(8, 3, 16, 16)

    direction = np.array(nh.to_array(c.w("t", 16, 16, 3, 3)))
    c.save(
        [
            h.make_node("ReduceL2", ["v"], ["n"], axes=[1, 2, 3]),
            h.make_node("Div", ["v", "n"], ["u"]),
            h.make_node("Mul", ["g", "u"], ["w2"]),
            h.make_node("Transpose", ["w1t"], ["w1"], perm=[3, 2, 0, 1]),
            h.make_node("Reshape", ["w3r", "shape"], ["w3"]),
            h.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Conv", ["r", "w2"], ["c"], pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["y"]),
        ],
        [vi("x", ["k", 3, 16, 16])],
        [vi("y", ["k", 4, 16, 16])],
        [
            c.w("w1t", 3, 3, 3, 16, scale=0.2),
            nh.from_array(direction, "v"),
            nh.from_array(np.full((16, 1, 1, 1), 1.4, np.float32), "g"),
            c.w("w3r", 4, 16),
            nh.from_array(np.array([4, 16, 1, 1]), "shape"),
        ],
    )
    c.feeds(x=images)


@case
def batched_weight(c: Case) -> None:
    """MatMul with a 3-D constant: quantized or listed with the reason; the rest goes on.

    Reported: own idea from the list of odd forms (per-head weights, Einsum).
    """
    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "w2"], ["b"]),
            h.make_node("Einsum", ["b", "w3"], ["c"], equation="btk,kn->btn"),
            h.make_node("MatMul", ["c", "w4"], ["y"]),
        ],
        [vi("x", ["n", 5, 16])],
        [vi("y", ["n", 5, 8])],
        [
            c.w("w1", 1, 16, 32, scale=0.25),
            c.w("w2", 32, 32, scale=0.2),
            c.w("w3", 32, 32, scale=0.2),
            c.w("w4", 32, 8, scale=0.2),
        ],
    )
    c.feeds(x=c.normal(8, 5, 16))


@case
def names(c: Case) -> None:
    """Node, tensor, input and output names with spaces, slashes, colons, quotes and CJK
    letters are kept for feeds and outputs.

    Reported: own idea from the list of odd forms (slashes, spaces, CJK; PaddlePaddle and
    TensorFlow names).
    """
    c.save(
        [
            h.make_node(
                "Conv", ["images/in:0", "权重 1"], ["a/b c"], name='层/Conv "1"', pads=[1] * 4
            ),
            h.make_node("Relu", ["a/b c"], ["r"], name='层/Relu "1"'),
            h.make_node("Conv", ["r", "w/2:0"], ["c"], name="层/Conv 2", pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["out put/结果:0"], name="<last>&"),
        ],
        [vi("images/in:0", ["n", 3, 16, 16])],
        [vi("out put/结果:0", ["n", 4, 16, 16])],
        [c.w("权重 1", 16, 3, 3, 3), c.w("w/2:0", 16, 16, 3, 3), c.w("w3", 4, 16, 1, 1)],
        file="names.onnx",
    )
    c.feeds(**{"images/in:0": c.normal(8, 3, 16, 16)})


@case
def opset24(c: Case) -> None:
    """A file of opset 24 with Attention and RMSNormalization is taken, or one line says that
    the opset is too new for the engine.

    Reported: own idea from the list of odd forms (newest opsets).
    """
    c.save(
        [
            h.make_node("RMSNormalization", ["x", "g"], ["n1"], axis=-1),
            h.make_node("MatMul", ["n1", "wq"], ["q"]),
            h.make_node("MatMul", ["n1", "wk"], ["k"]),
            h.make_node("MatMul", ["n1", "wv"], ["v"]),
            h.make_node("Attention", ["q", "k", "v"], ["o"], q_num_heads=4, kv_num_heads=4),
            h.make_node("MatMul", ["o", "wo"], ["p"]),
            h.make_node("Add", ["x", "p"], ["y"]),
        ],
        [vi("x", ["n", 6, 32])],
        [vi("y", ["n", 6, 32])],
        [c.w(n, 32, 32) for n in ("wq", "wk", "wv", "wo")]
        + [nh.from_array(np.ones(32, np.float32), "g")],
        opset=24,
        ir=11,
    )
    c.feeds(x=c.normal(16, 6, 32))


@case
def external_in_subfolder(c: Case) -> None:
    """Two graphs whose weights lie in one shared file in a subfolder, behind a symbolic link,
    are read; the input files stay as they are.

    Reported: microsoft/onnxruntime #11072, #14213, huggingface/optimum #300 (external data).
    """
    (c.folder / "weights").mkdir(exist_ok=True)
    for k, name in enumerate(("a", "b")):
        m = c.save(
            [
                h.make_node("MatMul", ["h" if k else "x", "w1"], ["t"]),
                h.make_node("Relu", ["t"], ["r"]),
                h.make_node("MatMul", ["r", "w2"], ["y" if k else "h"]),
            ],
            [vi("h" if k else "x", ["n", 64])],
            [vi("y" if k else "h", ["n", 64])],
            [c.w("w1", 64, 64), c.w("w2", 64, 64)],
            file=f"{name}.onnx",
        )
        onnx.save(
            m,
            c.folder / f"{name}.onnx",
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=f"weights/{name}.data",
            size_threshold=0,
        )
    (c.folder / "order.txt").write_text("a.onnx b.onnx")
    c.feeds(x=c.normal(16, 64))


@case
def control_flow_lstm(c: Case) -> None:
    """An Identity between an outer value and a branch's output inside an If does no harm.

    Reported: the silero-vad package (Identity as a branch's output), microsoft/onnxruntime #8488.
    """
    then = h.make_graph([h.make_node("Identity", ["r"], ["o1"])], "t", [], [vi("o1", None)])
    other = h.make_graph(
        [h.make_node("MatMul", ["r", "w2"], ["u"]), h.make_node("Identity", ["u"], ["o2"])],
        "e",
        [],
        [vi("o2", None)],
    )
    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("If", ["flag"], ["z"], then_branch=then, else_branch=other),
            h.make_node("MatMul", ["z", "w3"], ["y"]),
        ],
        [vi("x", ["n", 16]), vi("flag", [], T.BOOL)],
        [vi("y", ["n", 8])],
        [
            c.w("w1", 16, 64, scale=0.25),
            c.w("w2", 64, 64, scale=0.12),
            c.w("w3", 64, 8, scale=0.12),
        ],
    )
    c.feeds(x=c.normal(8, 16), flag=np.array([True, False] * 4))


@case
def old_opsets(c: Case) -> None:
    """Opset 9 with Upsample, opset-7-style Dropout and BatchNormalization is raised, or one
    line says what cannot be.

    Reported: own idea from the list of odd forms (opset 9).
    """
    images = c.normal(8, 3, 16, 16)

    c.save(
        [
            h.make_node("Conv", ["x", "w1"], ["a"], pads=[1] * 4),
            h.make_node("BatchNormalization", ["a", "one", "nil", "nil", "one"], ["bn"]),
            h.make_node("Relu", ["bn"], ["r"]),
            h.make_node("Dropout", ["r"], ["dr"], ratio=0.5),
            h.make_node("Upsample", ["dr", "sc"], ["up"], mode="nearest"),
            h.make_node("Conv", ["up", "w2"], ["c"], pads=[1] * 4),
            h.make_node("Relu", ["c"], ["s"]),
            h.make_node("Conv", ["s", "w3"], ["y"]),
        ],
        [vi("x", ["n", 3, 16, 16])],
        [vi("y", ["n", 4, 32, 32])],
        [
            c.w("w1", 16, 3, 3, 3),
            c.w("w2", 16, 16, 3, 3),
            c.w("w3", 4, 16, 1, 1),
            nh.from_array(np.ones(16, np.float32), "one"),
            nh.from_array(np.zeros(16, np.float32), "nil"),
            nh.from_array(np.array([1, 1, 2, 2], np.float32), "sc"),
        ],
        opset=9,
        ir=4,
    )
    c.feeds(x=images)


@case
def loop_body(c: Case) -> None:
    """An autoregressive Loop with products in its body: body listed, outside quantized,
    result as the file.

    Reported: microsoft/onnxruntime #18748 (Loop; a quantized value is not in scope).
    """
    body = h.make_graph(
        [
            h.make_node("MatMul", ["s", "wl"], ["t"]),
            h.make_node("Tanh", ["t"], ["s2"]),
            h.make_node("Identity", ["c"], ["c2"]),
            h.make_node("Identity", ["s2"], ["scan"]),
        ],
        "b",
        [vi("i", [], T.INT64), vi("c", [], T.BOOL), vi("s", None)],
        [vi("c2", [], T.BOOL), vi("s2", None), vi("scan", None)],
    )
    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("Loop", ["m", "yes", "r"], ["f", "all"], body=body),
            h.make_node("MatMul", ["f", "wl"], ["g"]),
            h.make_node("MatMul", ["g", "w3"], ["y"]),
        ],
        [vi("x", ["n", 16])],
        [vi("y", ["n", 8])],
        [
            c.w("w1", 16, 64, scale=0.25),
            c.w("wl", 64, 64, scale=0.12),
            c.w("w3", 64, 8, scale=0.12),
            nh.from_array(np.array(3), "m"),
            nh.from_array(np.array(True), "yes"),
        ],
    )
    c.feeds(x=c.normal(8, 16))


@case
def small_rms_output(c: Case) -> None:
    """An output that is constant 0 for the samples, and a float64 output, do not make the
    report fail or show NaN.

    Reported: own idea from the list of odd forms (constant, float64 and bool outputs).
    """
    c.save(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"]),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "w2"], ["y"]),
            h.make_node("Mul", ["y", "nil"], ["zero"]),
            h.make_node("Cast", ["y"], ["d"], to=T.DOUBLE),
            h.make_node("Greater", ["y", "nil"], ["b"]),
        ],
        [vi("x", ["n", 16])],
        [
            vi("y", ["n", 8]),
            vi("zero", ["n", 8]),
            vi("d", ["n", 8], T.DOUBLE),
            vi("b", ["n", 8], T.BOOL),
        ],
        [
            c.w("w1", 16, 64, scale=0.25),
            c.w("w2", 64, 8, scale=0.12),
            nh.from_array(np.float32(0), "nil"),
        ],
    )
    c.feeds(x=c.normal(8, 16))


@case
def ai_onnx_domain(c: Case) -> None:
    """'ai.onnx' is the default domain: the opset is 17, products are found.

    Reported: ONNX specification: 'ai.onnx' is an alias of the default domain (no report found).
    """
    graph = h.make_graph(
        [
            h.make_node("MatMul", ["x", "w1"], ["a"], domain="ai.onnx"),
            h.make_node("Relu", ["a"], ["r"]),
            h.make_node("MatMul", ["r", "w3"], ["y"], domain="ai.onnx"),
        ],
        "g",
        [vi("x", ["n", 16])],
        [vi("y", ["n", 8])],
        [c.w("w1", 16, 64, scale=0.25), c.w("w3", 64, 8, scale=0.12)],
    )
    onnx.save(
        h.make_model(graph, opset_imports=[h.make_opsetid("ai.onnx", 17)], ir_version=8),
        c.folder / "model.onnx",
    )
    c.feeds(x=c.normal(64, 16))
