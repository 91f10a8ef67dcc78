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
from arvg_trt.export.passes.linears import (
    CanonicalLinearsPass,
    NameParametersPass,
    norm_parameters,
)
from arvg_trt.export.passes.naming import InsertSizeCheckPass, NameNodesPass, SignPass
from arvg_trt.export.passes.norms import SplitLongNormsPass
from arvg_trt.families.custom.canonical import (
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
from arvg_trt.families.shared.llama.write import norm_weights
from arvg_trt.families.var.write import ModulationFactorsPass
from arvg_trt.graph.group_norm import ExpandGroupNormsPass
from arvg_trt.graph.passes import DropEmptyInputsPass

from .graph.pass_graphs import GRAPHS, from_a_file, half, modulated, quantized
from .graph.text import graph_of, made_by, random, written

ROOT = Path(str(arvg_trt.__file__)).resolve().parent
Pass = ir.passes.InPlacePass
ONES = np.ones(4, np.float32)


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


def computed_rows() -> ir.Model:
    model = graph_of("g (float[n, 4] x, float[1, 4] r) => (float[n, 4] y) { [p] y = Add(x, r) }")
    return made_by(model, p="blocks.0.ada_lin.0")


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
    NameParametersPass: Case(
        lambda: NameParametersPass(norm_parameters),
        None,
        text(f"{LINE} {{ y = LayerNormalization(x, s) }}", s=ONES),
    ),
    SplitLongNormsPass: Case(
        lambda: SplitLongNormsPass(drifting=["norm"]),
        lambda: marked_norm(COMPUTED_NORM),
        lambda: marked_norm(GROUP_NORM, s=ONES),
    ),
    ExpandGroupNormsPass: Case(ExpandGroupNormsPass, None, text(GROUP_NORM, s=ONES)),
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
    ModulationFactorsPass: Case(ModulationFactorsPass, computed_rows, modulated),
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
    "NameParametersPass of a Llama": lambda: NameParametersPass(norm_weights),
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
