"""Quantized linears as integer products with a float output, for ONNX Runtime on a CPU.

    Mul 1/s -> [Sub c] -> QuantizeLinear(uint8, zero point 128) -> MatMulInteger -> Mul

Left to itself ONNX Runtime runs the canonical form in float, or fuses it into kernels that are
wrong for symmetric INT8; nothing here is rounded that the Q/DQ graph does not round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from .integer_forms import match_chain, quantize_input
from .rewriting import Inserter, array, producer, remove_dead_nodes, take_over


def rewrite_linears(model: ir.Model) -> list[str]:
    """Turn every MatMul with Q/DQ on both sides into MatMulInteger, in place.

    Returns the rewritten node names, in graph order.
    """
    graph = model.graph
    done = []
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        chain = match_chain(node)
        weight = producer(node.inputs[1], "DequantizeLinear")
        if chain is None or weight is None or array(weight.inputs[1]).ndim:
            continue
        add = Inserter(graph, node)
        if chain.shift:
            offset = np.array(chain.shift * chain.scale, np.float32)
            chain = replace(chain, shift=0, sub=add.constant("input_shift", offset))
        x_zero = add.constant("x_zero", np.array(128, np.uint8))
        x_scale = add.constant("x_scale", np.array(chain.scale, np.float32))
        value = quantize_input(add, chain, x_scale, x_zero)
        codes = add.constant("w_codes", array(weight.inputs[0]).astype(np.int8))
        zero = add.constant("w_zero", np.int8(0))
        product = add("MatMulInteger", value, codes, x_zero, zero)
        both = np.array(chain.scale * float(array(weight.inputs[1])), np.float32)
        number = add("Cast", product, to=int(ir.DataType.FLOAT))
        scaled = add("Mul", number, add.constant("product_scale", both))
        take_over(scaled, node.outputs[0])
        done.append(str(node.name))
    remove_dead_nodes(graph)
    return done
