"""Laws that every pass over a graph keeps, on ONNX text.

1. `modified` is true exactly where the written bytes differ. 2. A second run changes nothing.
3. What `requires` and `ensures` promise is seen to raise, where a pass has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import arvg_trt
from arvg_trt.engines.onnxruntime.matmul_integer import MatMulIntegerPass
from arvg_trt.engines.onnxruntime.qlinear_conv import QLinearConvPass
from arvg_trt.engines.tensorrt.half_precision import HalfPrecisionPass
from arvg_trt.errors import ArvgError
from arvg_trt.export.passes.linears import CanonicalLinearsPass, NameNormParametersPass
from arvg_trt.export.passes.naming import InsertSizeCheckPass, NameNodesPass, SignPass
from arvg_trt.export.passes.norms import SplitLongNormsPass
from arvg_trt.families.custom.canonical import (
    UNNAMED,
    ForgetMadeUpNamesPass,
    InferShapesPass,
    SeparateConstantsPass,
    linear_name,
)
from arvg_trt.families.custom.constants import FoldConstantsPass, WidenFloat16Pass
from arvg_trt.families.custom.load import DefaultDomainPass, OpenDimensionsPass
from arvg_trt.families.custom.names import NameCustomGraphPass
from arvg_trt.families.custom.rewrites import (
    EinsumToMatMulPass,
    ExplicitPaddingPass,
    FlatWeightPass,
    PlainGemmPass,
    RewritePass,
)
from arvg_trt.families.custom.sequence_convolutions import SequenceConvolutionsPass
from arvg_trt.graph.group_norm import ExpandGroupNormsPass
from arvg_trt.graph.passes import DropEmptyInputsPass

from .graph.text import graph_of, made_by, random, written

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
Pass = ir.passes.InPlacePass
ONES = np.ones(4, np.float32)


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
    """What files say in odd ways: the domain by its other name, sizes of 0, empty inputs."""
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


GRAPHS: dict[str, Callable[[], ir.Model]] = {
    maker.__name__: maker
    for maker in (linears, norms, disguised, half, quantized, cached, body, unnamed, from_a_file)
}


@dataclass(frozen=True)
class Case:
    """A pass, and graphs that its `requires` and its `ensures` refuse (None: it has no such check).

    What `ensures` refuses is a graph that the pass has yet to rewrite.
    """

    make: Callable[[], Pass]
    refused: Callable[[], ir.Model] | None = None
    broken: Callable[[], ir.Model] | None = None


def text(body: str, **constants: np.ndarray) -> Callable[[], ir.Model]:
    return lambda: graph_of(body, **constants)


def function() -> ir.Model:
    model = graph_of("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    other = graph_of("g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }")
    made = ir.Function("own", "relu", graph=other.graph, attributes=[])
    model.functions[made.identifier()] = made
    return model


LINE = "g (float[n, 4] x) => (float[n, 4] y)"
IMAGE = "g (float[n, 4, 2, 2] x) => (float[n, 4, 2, 2] y)"
GROUP_NORM = f"{IMAGE} {{ [n] y = GroupNormalization<num_groups = 2>(x, s, s) }}"
COMPUTED_NORM = """g (float[n, 4, 2, 2] x, float[4] s) => (float[n, 4, 2, 2] y) {
    [n] y = GroupNormalization<num_groups = 2>(x, s, s) }"""
GEMM = f"{LINE} {{ y = Gemm<alpha = 2.0>(x, w) }}"
EINSUM = f'{LINE} {{ y = Einsum<equation = "nk,km->nm">(x, w) }}'
FLAT = "g (float[n, 1, 4] x) => (float[n, 1, 4] y) { y = MatMul(x, w) }"
PADDED = f'{IMAGE} {{ y = Conv<auto_pad = "SAME_UPPER">(x, w) }}'
SEQUENCE = "g (float[n, 4, 9] x) => (float[n, 4, 9] y) { y = Conv(x, w) }"
TWICE = f"{LINE} {{ [a] b = Relu(x) [a] y = Relu(b) }}"


def marked_norm(text: str, **constants: np.ndarray) -> ir.Model:
    return made_by(graph_of(text, **constants), n="norm")


def traced() -> ir.Model:
    """Return one linear that a module made."""
    model = graph_of(f"{LINE} {{ [p] y = MatMul(x, w) }}", w=random(0, 4, 4))
    return made_by(model, p="fc")


def computed_weight() -> ir.Model:
    model = graph_of("g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { [p] y = MatMul(x, w) }")
    return made_by(model, p="fc")


def unnamed_value() -> ir.Model:
    model = graph_of(f"{LINE} {{ a = Relu(x) y = Relu(a) }}")
    model.graph[0].outputs[0].name = None
    return model


CASES: dict[type[Pass], Case] = {
    NameNodesPass: Case(NameNodesPass, text(TWICE), lambda: made_by(graph_of(TWICE), a="relu")),
    SignPass: Case(lambda: SignPass({"model": "toy"}), None, traced),
    InsertSizeCheckPass: Case(
        lambda: InsertSizeCheckPass(2),
        text(f"{LINE} {{ y = Relu(x) }}"),
        text(f"{IMAGE} {{ y = Relu(x) }}"),
    ),
    CanonicalLinearsPass: Case(CanonicalLinearsPass, computed_weight, traced),
    NameNormParametersPass: Case(
        NameNormParametersPass,
        None,
        text(f"{LINE} {{ y = LayerNormalization(x, s) }}", s=ONES),
    ),
    SplitLongNormsPass: Case(
        lambda: SplitLongNormsPass(drifting=["norm"]),
        lambda: marked_norm(COMPUTED_NORM),
        lambda: marked_norm(GROUP_NORM, s=ONES),
    ),
    ExpandGroupNormsPass: Case(ExpandGroupNormsPass, text(COMPUTED_NORM), text(GROUP_NORM, s=ONES)),
    WidenFloat16Pass: Case(WidenFloat16Pass, function, half),
    FoldConstantsPass: Case(
        FoldConstantsPass, function, text(f"{LINE} {{ y = Relu(x) }}", unread=ONES)
    ),
    ForgetMadeUpNamesPass: Case(ForgetMadeUpNamesPass),
    InferShapesPass: Case(
        InferShapesPass,
        None,
        text(
            """g (float[n, 4, 2, 2] x) => (y) {
                y = GroupNormalization<num_groups = 2>(x, s, s) }""",
            s=ONES,
        ),
    ),
    PlainGemmPass: Case(PlainGemmPass, None, text(GEMM, w=random(0, 4, 4))),
    EinsumToMatMulPass: Case(EinsumToMatMulPass, None, text(EINSUM, w=random(0, 4, 4))),
    FlatWeightPass: Case(FlatWeightPass, None, text(FLAT, w=random(0, 1, 4, 4))),
    ExplicitPaddingPass: Case(ExplicitPaddingPass, None, text(PADDED, w=random(0, 4, 4, 3, 3))),
    SequenceConvolutionsPass: Case(
        SequenceConvolutionsPass,
        lambda: graph_of(SEQUENCE, opset=12, w=random(0, 4, 4, 1)),
        text(SEQUENCE, w=random(0, 4, 4, 1)),
    ),
    NameCustomGraphPass: Case(
        lambda: NameCustomGraphPass("g", ["other"]), unnamed_value, text(TWICE)
    ),
    SeparateConstantsPass: Case(
        SeparateConstantsPass,
        None,
        text(f"{LINE} {{ [m] a = Mul(x, s) [b] y = Add(a, s) }}", s=ONES),
    ),
    QLinearConvPass: Case(
        lambda: QLinearConvPass({"conv": (np.full(4, -9.0), np.full(4, 9.0))}),
        lambda: quantized(5),
        quantized,
    ),
    DefaultDomainPass: Case(DefaultDomainPass, None, from_a_file),
    OpenDimensionsPass: Case(OpenDimensionsPass, None, from_a_file),
    DropEmptyInputsPass: Case(DropEmptyInputsPass, None, from_a_file),
    MatMulIntegerPass: Case(MatMulIntegerPass, None, quantized),
    HalfPrecisionPass: Case(
        HalfPrecisionPass,
        text(f"{LINE} {{ c = Constant<value = float[4] {{1, 2, 3, 4}}>() y = Add(x, c) }}"),
        text(
            "g (float[n, 4] x, float16[n, 4] h) => (float[n, 4] y) { [a] y = Add(x, h) }",
        ),
    ),
}

MAKERS = {
    **{kind.__name__: case.make for kind, case in CASES.items()},
    "CanonicalLinearsPass of a custom graph": lambda: CanonicalLinearsPass(linear_name),
    "HalfPrecisionPass in bfloat16": lambda: HalfPrecisionPass(dtype="bfloat16"),
}


def passes_of_the_package() -> set[type[Pass]]:
    """Every class of the package that is a pass, without the ones that only frame others."""
    found: set[type[Pass]] = set()
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in (".venv", "tests") or "Pass" not in path.read_text():
            continue
        module = import_module(".".join(("arvg_trt", *relative.with_suffix("").parts)))
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                found |= {value} if issubclass(value, ir.passes.InPlacePass) else set()
    return found - {RewritePass}


def test_every_pass_has_a_case() -> None:
    assert passes_of_the_package() == set(CASES)


@pytest.mark.parametrize("name", MAKERS)
def test_modified_is_true_where_bytes_differ_and_false_in_a_second_run(name: str) -> None:
    changed = []
    for graph, maker in GRAPHS.items():
        model = maker()
        before = written(model)
        try:
            first = MAKERS[name]()(model).modified
        except (ir.passes.PreconditionError, ArvgError):
            continue  # the graph is none for this pass
        after = written(model)
        assert first == (before != after), graph
        assert not MAKERS[name]()(model).modified, graph
        assert written(model) == after, graph
        changed += [graph] * first
    assert changed


@pytest.mark.parametrize("kind", CASES)
def test_what_a_pass_asks_and_promises_is_checked(kind: type[Pass]) -> None:
    case = CASES[kind]
    assert (case.refused is not None) == (kind.requires is not ir.passes.PassBase.requires)
    assert (case.broken is not None) == (kind.ensures is not ir.passes.PassBase.ensures)
    if case.refused is not None:
        with pytest.raises(ir.passes.PreconditionError):
            case.make()(case.refused())
    if case.broken is not None:
        made, model = case.make(), case.broken()
        assert made(model).modified
        with pytest.raises(ir.passes.PostconditionError):
            made.ensures(case.broken())


# What these promise is that the nodes they say they have replaced are gone.
REMEMBERING = (QLinearConvPass, MatMulIntegerPass)


@pytest.mark.parametrize(
    "kind", [k for k, case in CASES.items() if case.broken and k not in REMEMBERING]
)
def test_a_pass_that_forgets_its_work_is_found_by_its_own_promise(
    kind: type[Pass], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(self: Pass, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, modified=False)

    monkeypatch.setattr(kind, "call", forget)
    monkeypatch.setattr(kind, "requires", lambda self, model: None)
    broken = CASES[kind].broken
    assert broken is not None
    with pytest.raises(ir.passes.PostconditionError):
        CASES[kind].make()(broken())
