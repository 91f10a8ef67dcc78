"""Files that are quantized already are refused, with what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from arvg_trt.errors import ExportError
from arvg_trt.families.custom.canonical import read_custom_graph

from .models import WIDTH, Node, random, small_graph

W = WIDTH


QDQ: list[Node] = [
    ("QuantizeLinear", ["x", "s", "z"], "q", {}),
    ("DequantizeLinear", ["q", "s", "z"], "d", {}),
    ("DequantizeLinear", ["w", "s", "z"], "wd", {}),
    ("MatMul", ["d", "wd"], "y", {}),
]


@pytest.mark.parametrize(
    ("zero", "said", "do"),
    [
        (np.int8(0), "all zero points 0, int8", "TensorRT and ONNX Runtime take this one"),
        (np.uint8(128), "3 of 3 zero points not 0, such as 128; uint8", "no zero points but 0"),
    ],
)
def test_quantized_files_are_refused_with_their_zero_points(
    tmp_path: Path, zero: np.generic, said: str, do: str
) -> None:
    held = {"s": np.float32(0.02), "z": zero, "w": np.ones((W, W), zero.dtype)}
    path = small_graph(tmp_path / "g.onnx", QDQ, held)
    with pytest.raises(ExportError, match="is already quantized \\(Q/DQ: 1 Quantize") as caught:
        read_custom_graph(path)
    assert said in caught.value.what and do in str(caught.value.do)
    assert caught.value.where == str(path)


def test_integer_operators_and_packed_weights_are_recognised(tmp_path: Path) -> None:
    integer: list[Node] = [("MatMulInteger", ["q", "w", "z", "z"], "y", {})]
    path = small_graph(
        tmp_path / "i.onnx",
        [("Cast", ["x"], "q", {"to": TensorProto.UINT8}), *integer],
        {"w": np.ones((W, W), np.uint8), "z": np.uint8(3)},
    )
    with pytest.raises(ExportError, match=r"integer operators .* 2 of 2 zero points not 0"):
        read_custom_graph(path)
    packed = small_graph(
        tmp_path / "p.onnx", [("MatMul", ["x", "w"], "y", {})], {"w": random(0, W, W)}
    )
    proto = onnx.load(packed)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "MatMulNBits", "com.microsoft"
    onnx.save(proto, packed)
    with pytest.raises(ExportError, match="weight-only: 1 MatMulNBits"):
        read_custom_graph(packed)
