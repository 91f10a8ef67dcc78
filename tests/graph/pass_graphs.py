"""Graphs that the passes are tried on, each of some kind that the program sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from arvg_trt.families.custom.canonical import UNNAMED

from .text import graph_of, made_by, random


def linears() -> ir.Model:
    """Linears as the exporter writes them: Gemm, MatMul by a transposed weight, a shared bias."""
    model = graph_of(
        """g (float[n, 4] x) => (float[n, 4] y) {
            [first] a = Gemm<transB = 1>(x, w, b)
            [turn] t = Transpose<perm = [1, 0]>(v)
            [second] c = MatMul(a, t)
            [add] d = Add(c, b)
            [relu] y = Relu(d)
        }""",
        w=random(0, 4, 4),
        v=random(1, 4, 4),
        b=random(2, 4),
        unread=random(3, 4),
    )
    paths = {"first": "a.fc", "second": "b.fc", "add": "b.fc", "relu": "b", "turn": "b.fc"}
    return made_by(model, **paths)


def norms() -> ir.Model:
    """Two layer norms with one merged affine, and a group norm that its module marks."""
    model = graph_of(
        """g (float[n, 4, 2, 2] x) => (float[n, 4, 2, 2] y, float[n, 4, 2, 2] z) {
            [one] a = LayerNormalization<axis = 1>(x, s, s)
            [two] y = LayerNormalization<axis = 1>(a, s, s)
            [group] z = GroupNormalization<num_groups = 2, epsilon = 0.01>(x, u, u)
        }""",
        s=random(0, 4, 2, 2),
        u=random(1, 4),
    )
    return made_by(model, one="blocks.0.norm", two="blocks.1.norm", group="norm")


def disguised() -> ir.Model:
    """Products in every form that a user's file may have, without names."""
    return graph_of(
        """g (float[4, n] x, float[n, c, t] line, float[n, 1, 4, 4] s, float16[2] h) =>
            (float[n, 4] y, e, f, p, q) {
            a = Gemm<alpha = 2.0, transA = 1>(x, w, b)
            "a/b" = Mul(a, b)
            y = Add("a/b", b)
            e = Einsum<equation = "...k, nk -> ...n">(a, w)
            m = MatMul(s, u)
            f = MatMul(m, s)
            k = Conv<auto_pad = "SAME_UPPER">(s, k2)
            p = GroupNormalization<num_groups = 1>(k, one, one)
            i = Conv<pads = [1, 1]>(line, k1)
            r = Relu(i)
            q = Conv(r, k3)
        }""",
        w=random(0, 4, 4),
        b=random(1, 4),
        u=random(2, 1, 1, 4, 4),
        k2=random(3, 1, 1, 3, 3),
        k1=random(4, 2, 3, 3),
        k3=random(5, 2, 2, 1),
        one=np.ones(1, np.float32),
    )


def half() -> ir.Model:
    """A float16 model, of weights that constants compute."""
    return graph_of(
        """g (float16[n, 4] x) => (float16[n, 4] y) {
            [scaled] a = Mul(w, two)
            [split] b, c = Split<axis = 1, num_outputs = 2>(a)
            [product] d = MatMul(x, b)
            [other] e = MatMul(x, c)
            [join] y = Concat<axis = 1>(d, e)
        }""",
        w=random(0, 4, 4).astype(np.float16),
        two=np.float16(2),
    )


def quantized(outputs: int = 4) -> ir.Model:
    """A convolution and a linear with Q/DQ on both sides, as quantized graphs have them."""
    return graph_of(
        """g (float[n, 4, 2, 2] x) => (float[n, 2, 2, 4] y) {
            [xq] a = QuantizeLinear(x, s, z)
            [xd] b = DequantizeLinear(a, s, z)
            [wd] c = DequantizeLinear<axis = 0>(w, ws, wz)
            [conv] d = Conv<pads = [1, 1, 1, 1]>(b, c, bias)
            [turn] e = Transpose<perm = [0, 2, 3, 1]>(d)
            [lq] f = QuantizeLinear(e, s, z)
            [ld] h = DequantizeLinear(f, s, z)
            [vd] i = DequantizeLinear(v, s, z)
            [linear] y = MatMul(h, i)
        }""",
        s=np.float32(0.05),
        z=np.int8(0),
        w=np.resize(np.arange(-72, 72), (outputs, 4, 3, 3)).astype(np.int8),
        ws=np.full(outputs, 0.01, np.float32),
        wz=np.zeros(outputs, np.int8),
        v=np.resize(np.arange(-8, 8), (outputs, 4)).astype(np.int8),
        bias=random(0, outputs),
    )


def cached() -> ir.Model:
    """A step with a float16 cache, sums, a mask and a decision: parts that stay in FP32."""
    return graph_of(
        """g (float[n, 4] x, float16[p, 4] past) => (float[n, 4] y, float16[q, 4] present, i) {
            [key] k = MatMul(x, w)
            [narrow] h = Cast<to = 10>(k)
            [grow] present = Concat<axis = 0>(past, h)
            [mean] m = ReduceMean(k, axis)
            [centred] c = Sub(k, m)
            [soft] s = Softmax(c)
            [halved] o = Cast<to = 10>(s)
            [back] u = Cast<to = 1>(o)
            [out] v = MatMul(u, w)
            [best] i = ArgMax(v)
            [wide] q = MatMul(v, large)
            [narrower] y = MatMul(q, other)
        }""",
        w=random(0, 4, 4),
        large=random(1, 4, 600),
        other=random(2, 600, 4),
        axis=np.array([1]),
    )


def body() -> ir.Model:
    """An If whose branches have nodes, names and a product of their own, with metadata."""
    branch = "g{k} () => (float[n, 4] o) {{ [same] o = {op}(x, w) }}"
    model = graph_of(
        f"""g (float[n, 4] x, bool c) => (float[n, 4] y) {{
            [if] z = If<then_branch = {branch.format(k=1, op="MatMul")},
                      else_branch = {branch.format(k=2, op="Add")}>(c)
            ["a/id"] y = Identity(z)
        }}""",
        w=random(0, 4, 4),
    )
    for node in model.graph.all_nodes():
        node.metadata_props["made in"] = "/home/someone"
    return model


def unnamed() -> ir.Model:
    """Nodes that have names now and had none in the file, and one that says where it is from."""
    model = disguised()
    for k, node in enumerate(model.graph):
        node.name, node.meta[UNNAMED] = f"node_{k}", True
    model.graph[0].doc_string = "made on a machine"
    return model


def from_a_file() -> ir.Model:
    """A file in odd words: the domain by its other name, sizes of 0, empty inputs."""
    model = graph_of(
        """g (float[n, 0, 4] x) => (float["?", 4, 4] y) {
            [first] a = Relu(x)
            [clip] y = Clip(a, low)
        }""",
        low=np.float32(0),
    )
    model.graph[0].domain, model.opset_imports["ai.onnx"] = "ai.onnx", 21
    model.graph[1].resize_inputs(3)
    return model


def modulated() -> ir.Model:
    """Norms of RMS with one merged weight, and rows of two blocks added to a shared modulation."""
    model = graph_of(
        """g (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) {
            [norm] a = Mul(x, s)
            [other] b = Mul(a, s)
            [plain] c = Mul(b, s)
            [one] y = Add(c, r)
            [two] z = Add(c, r)
        }""",
        s=random(0, 4),
        r=random(1, 1, 4),
    )
    paths = {"one": "blocks.0.ada_lin.0", "two": "blocks.1.ada_lin.0"}
    return made_by(model, norm="blocks.0.norm", other="blocks.1.norm", **paths)


GRAPHS: dict[str, Callable[[], ir.Model]] = {
    maker.__name__: maker
    for maker in (
        linears,
        norms,
        modulated,
        disguised,
        half,
        quantized,
        cached,
        body,
        unnamed,
        from_a_file,
    )
}
