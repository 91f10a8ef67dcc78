"""Linears in one form, with the names of their modules, on ONNX text."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.errors import ExportError
from arvg_trt.export.passes.linears import (
    CanonicalLinearsPass,
    NameParametersPass,
    TransposedTensor,
    norm_parameters,
)

from ...graph.text import assert_same_after, graph_of, made_by, operators, random

LINE = "g (float[n, 4] x) => (float[n, 6] y)"


def linear(text: str, path: str = "fc", **constants: np.ndarray) -> ir.Model:
    """Return a graph whose nodes all were made by one linear."""
    model = graph_of(text, **constants)
    names = {str(node.name): path for node in model.graph}
    return made_by(model, **names)


FORMS = {
    "Gemm": ("[p] y = Gemm(x, w, b)", False, "add"),
    "Gemm of a transposed weight": ("[p] y = Gemm<transB = 1>(x, w, b)", True, "add"),
    "Gemm without a bias": ("[p] y = Gemm<transB = 1>(x, w)", True, ""),
    "MatMul": ("[p] y = MatMul(x, w)", False, ""),
    "MatMul and Add": ("[p] m = MatMul(x, w) [a] y = Add(m, b)", False, "add"),
    "the bias first": ("[p] m = MatMul(x, w) [a] y = Add(b, m)", False, "add"),
    "MatMul of a Transpose": (
        "[t] v = Transpose<perm = [1, 0]>(w) [p] m = MatMul(x, v) [a] y = Add(m, b)",
        True,
        "add",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_linear_becomes_matmul_and_add(form: str) -> None:
    nodes, turned, added = FORMS[form]
    weight, bias = random(0, *((6, 4) if turned else (4, 6))), random(1, 6)
    held = {"w": weight, **({"b": bias} if added else {})}
    model = linear(f"{LINE} {{ {nodes} }}", **held)
    assert_same_after(CanonicalLinearsPass(), model, x=random(2, 3, 4))
    assert operators(model) == ["MatMul", "Add"] if added else ["MatMul"]
    assert [node.name for node in model.graph] == (["p", "p/Add"] if added else ["p"])
    names = {"fc.weight", "fc.bias"} if added else {"fc.weight"}
    assert set(model.graph.initializers) == names
    found = model.graph.initializers["fc.weight"].const_value
    assert found is not None and isinstance(found, TransposedTensor) == turned
    np.testing.assert_array_equal(found.numpy(), weight.T if turned else weight)
    assert not CanonicalLinearsPass()(model).modified


def test_modules_have_constants_of_their_own_where_the_exporter_merged_equal_ones() -> None:
    model = made_by(
        graph_of(
            """g (float[n, 4] x) => (float[n, 4] y) {
                [one] a = Gemm(x, w, b)
                [two] y = Gemm(a, w, b)
            }""",
            w=random(0, 4, 4),
            b=np.zeros(4, np.float32),
        ),
        one="q",
        two="k",
    )
    assert_same_after(CanonicalLinearsPass(), model, x=random(2, 3, 4))
    assert set(model.graph.initializers) == {"q.weight", "q.bias", "k.weight", "k.bias"}


def test_a_module_that_is_called_twice_keeps_one_weight() -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        [fc] t = Transpose<perm = [1, 0]>(w)
        [p] a = MatMul(x, t)
        [q] b = MatMul(a, t)
        [r] y = Relu(b)
    }"""
    model = linear(text, w=random(0, 4, 4))
    assert_same_after(CanonicalLinearsPass(), model, x=random(2, 3, 4))
    assert [node.inputs[1].name for node in list(model.graph)[:2]] == ["fc.weight"] * 2
    assert operators(model) == ["MatMul", "MatMul", "Relu"]


def test_a_weight_that_already_has_the_name_may_be_the_transposed_one() -> None:
    model = linear(
        f"{LINE} {{ [t] v = Transpose<perm = [1, 0]>(u) [p] y = MatMul(x, v) }}", u=random(0, 6, 4)
    )
    model.graph.initializers["u"].name = "fc.weight"
    assert_same_after(CanonicalLinearsPass(), model, x=random(2, 3, 4))
    (value,) = model.graph.initializers.values()
    assert value.name == "fc.weight" and list(value.shape or ()) == [4, 6]


@pytest.mark.parametrize(
    ("nodes", "left"),
    [
        ("[p] y = MatMul(x, w)", ["w"]),  # no linear: a product that a function of PyTorch made
        ("[p] m = MatMul(x, w) [a] y = Add(m, b)", ["b", "w"]),
    ],
)
def test_other_products_stay_as_they_are(nodes: str, left: list[str]) -> None:
    model = graph_of(f"{LINE} {{ {nodes} }}", w=random(0, 4, 6), b=random(1, 6))
    before = operators(model)
    CanonicalLinearsPass()(model)
    assert operators(model) == before and sorted(model.graph.initializers) == left


@pytest.mark.parametrize("bias", [random(1, 1, 6), np.float32(2), random(1, 3, 6)])
def test_only_a_vector_behind_a_product_is_its_bias(bias: np.ndarray) -> None:
    model = linear(
        f"{LINE} {{ [p] m = MatMul(x, w) [a] y = Add(m, b) }}", w=random(0, 4, 6), b=bias
    )
    CanonicalLinearsPass()(model)
    assert set(model.graph.initializers) == {"fc.weight", "b"}
    assert [node.name for node in model.graph] == ["p", "a"]


def test_a_product_that_another_reads_has_no_bias() -> None:
    text = f"{LINE} {{ [p] m = MatMul(x, w) [a] n = Add(m, b) [c] y = Mul(n, m) }}"
    model = linear(text, w=random(0, 4, 6), b=random(1, 6))
    CanonicalLinearsPass()(model)
    assert set(model.graph.initializers) == {"fc.weight", "b"}


@pytest.mark.parametrize("factor", ["alpha = 2.0", "beta = 0.5", "transA = 1"])
def test_a_gemm_that_is_more_than_a_linear_is_the_users_to_report(factor: str) -> None:
    text = f"g (float[4, 4] x) => (float[4, 4] y) {{ [p] y = Gemm<{factor}>(x, w, b) }}"
    model = linear(text, w=random(0, 4, 4), b=random(1, 4))
    with pytest.raises(ExportError, match="Gemm p is not a linear"):
        CanonicalLinearsPass()(model)


def test_two_constants_of_one_name_are_an_error() -> None:
    """Two modules that say the same path, with unlike weights."""
    text = """g (float[n, 4] x) => (float[n, 4] y) { [p] a = MatMul(x, w) [q] y = MatMul(a, v) }"""
    with pytest.raises(ExportError, match=r"two different constants are called fc\.weight"):
        CanonicalLinearsPass()(linear(text, w=random(0, 4, 4), v=random(1, 4, 4)))


def test_a_linear_whose_weight_is_computed_is_a_mistake_of_whoever_names_it() -> None:
    text = "g (float[n, 4] x, float[4, 6] w) => (float[n, 6] y) { [p] y = MatMul(x, w) }"
    assert not CanonicalLinearsPass(lambda node: None)(linear(text)).modified
    with pytest.raises(ir.passes.PreconditionError, match="its weight is no constant"):
        CanonicalLinearsPass()(linear(text))


NORMS = """g (float[n, 4] x) => (float[n, 4] y) {
    [one] a = LayerNormalization(x, s, b)
    [two] c = LayerNormalization(a, s)
    [three] d = Mul(c, s)
    [four] y = LayerNormalization(d, d, b)
}"""


def test_layer_norms_have_parameters_of_their_own() -> None:
    """Also where the exporter merged equal ones; what is computed stays."""
    text = NORMS.replace("LayerNormalization(d, d, b)", "Add(d, b)")
    model = made_by(graph_of(text, s=random(0, 4), b=random(1, 4)), one="norm1", two="norm2")
    assert_same_after(NameParametersPass(norm_parameters), model, x=random(2, 3, 4))
    names = {"norm1.weight", "norm1.bias", "norm2.weight", "s", "b"}
    assert set(model.graph.initializers) == names
    computed = made_by(
        graph_of(NORMS, s=random(0, 4), b=random(1, 4)), one="norm1", two="norm2", four="norm3"
    )
    NameParametersPass(norm_parameters)(computed)
    assert computed.graph[3].inputs[1] is computed.graph[2].outputs[0]
    assert not NameParametersPass(norm_parameters)(computed).modified
