"""Names of sites and of all else in a custom graph, on ONNX text."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from arvg_trt.families.custom.names import NameCustomGraphPass

from ...graph.text import graph_of, made_by, random

LINE = "g (float[n, 4] x) => (float[n, 4] y)"


def names(model: ir.Model) -> list[str | None]:
    return [node.name for node in model.graph]


def test_sites_are_named_after_weight_module_or_node_and_the_rest_without_slashes() -> None:
    model = graph_of(
        f"""{LINE} {{
            [one] a = MatMul(x, "blocks.0.fc.weight")
            [two] b = MatMul(a, val_7)
            ["/blocks.2/attn/MatMul"] c = MatMul(b, val_8)
            ["/blocks.2/act/Relu"] "/blocks.2/act/out" = Relu(c)
            d = MatMul("/blocks.2/act/out", val_9)
            y = Relu(d)
        }}""",
        **{k: random(0, 4, 4) for k in ("blocks.0.fc.weight", "val_7", "val_8", "val_9")},
    )
    made_by(model, two="blocks.1.fc")
    assert NameCustomGraphPass("g")(model).modified
    assert names(model) == [
        *("blocks.0.fc", "blocks.1.fc", "blocks.2.attn", "blocks.2.act.Relu", "matmul", "relu")
    ]
    assert model.graph[3].outputs[0].name == "blocks.2.act.out"
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_products_of_two_activations_have_their_role_once() -> None:
    model = graph_of(
        """g (float[n, 4, 4] x) => (float[n, 4, 4] y) {
            ["/attn/MatMul"] a = MatMul(x, x)
            [soft] p = Softmax(a)
            ["/attn/MatMul_1"] y = MatMul(p, x)
        }"""
    )
    name = NameCustomGraphPass("g")
    assert name(model).modified
    assert names(model) == ["attn.bmm_qk", "soft", "attn.MatMul_1.bmm_pv"]
    assert not name(model).modified


def test_one_weight_of_two_sites_numbers_the_second() -> None:
    model = graph_of(
        f'{LINE} {{ a = MatMul(x, "t.weight") y = MatMul(a, "t.weight") }}',
        **{"t.weight": random(0, 4, 4)},
    )
    NameCustomGraphPass("g")(model)
    assert names(model) == ["t", "t_2"]


def test_a_taken_name_gets_the_graphs_before_it_and_other_nodes_may_have_it() -> None:
    model = graph_of(
        f"{LINE} {{ [one] a = MatMul(x, fc) [taken] y = Relu(a) }}", fc=random(0, 4, 4)
    )
    NameCustomGraphPass("second", ["one", "taken"])(model)
    assert names(model) == ["second.one", "taken"]


def test_a_site_leaves_the_names_of_other_constants_free() -> None:
    model = graph_of(
        f"""{LINE} {{ a = Mul(x, "fc.weight") [fc] b = MatMul(a, w) c = Relu(b)
            y = Add(c, "fc.bias") }}""",
        **{"fc.weight": random(0, 4), "fc.bias": random(1, 4), "w": random(2, 4, 4)},
    )
    NameCustomGraphPass("g")(model)
    assert names(model)[1] == "fc_2"


def test_values_and_nodes_in_bodies_have_names_of_their_own() -> None:
    body = "b{k} () => (float[n, 4] o) {{ [same] v = Relu(x) [out] o = {op}(v) }}"
    model = graph_of(
        f"""g (float[n, 4] x, bool c) => (float[n, 4] y) {{
            [same] v = Abs(x)
            [if] z = If<then_branch = {body.format(k=1, op="Neg")},
                      else_branch = {body.format(k=2, op="Exp")}>(c)
            [add] y = Add(v, z)
        }}"""
    )
    NameCustomGraphPass("g")(model)
    nodes = list(model.graph.all_nodes())
    assert len({node.name for node in nodes}) == len(nodes) == 7
    made = [value.name for node in nodes for value in node.outputs]
    assert len(set(made)) == len(made)
    assert model.graph[0].outputs[0].name == "v"


def test_a_value_that_is_read_needs_a_name_first() -> None:
    model = graph_of(f"{LINE} {{ a = Relu(x) y = Relu(a) }}")
    model.graph[0].outputs[0].name = None
    with pytest.raises(ir.passes.PreconditionError, match="a Relu makes a value without a name"):
        NameCustomGraphPass("g")(model)
