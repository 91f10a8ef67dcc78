"""Names, signatures and size checks of exported graphs, on ONNX text."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.export.passes.naming import (
    InsertSizeCheckPass,
    NameNodesPass,
    SignPass,
    is_linear,
    module_path,
)

from ...graph.text import graph_of, made_by, operators, run, written

TRACED = """g (float[n, 4] x) => (float[n, 4] y) {
    [n0] a = MatMul(x, w)
    [n1] b = Relu(a)
    [n2] c = MatMul(b, w)
    [n3] d = Relu(c)
    [n4] e = Relu(d)
    [n5] y = MatMul(e, w)
}"""
PATHS = {"n0": "blocks.0.fc", "n1": "blocks.0", "n2": "blocks.0.fc", "n3": "blocks.0", "n4": "act"}


def traced() -> ir.Model:
    return made_by(graph_of(TRACED, w=np.eye(4, dtype=np.float32)), **PATHS)


def test_a_product_has_its_modules_name_and_others_a_number_within_theirs() -> None:
    model = traced()
    assert NameNodesPass()(model).modified
    names = [node.name for node in model.graph]
    assert names == [
        *("blocks.0.fc", "blocks.0/Relu_1", "blocks.0.fc_2", "blocks.0/Relu_2", "act/Relu_1"),
        "/MatMul_1",
    ]


def test_paths_and_linears_are_read_off_the_exporters_scopes() -> None:
    nodes = list(traced().graph)
    assert [module_path(node) for node in nodes] == [*PATHS.values(), ""]
    assert [is_linear(node) for node in nodes] == [True, False, True, False, False, False]


def test_nodes_cannot_be_named_after_their_modules_once_the_graph_is_signed() -> None:
    model = traced()
    SignPass({})(model)
    with pytest.raises(ir.passes.PreconditionError, match="which module"):
        NameNodesPass()(model)


def test_two_nodes_of_one_name_break_the_promise() -> None:
    """A module `fc` that is called twice, beside one that is called `fc_2` in the model."""
    model = made_by(graph_of(TRACED, w=np.eye(4, dtype=np.float32)), n0="fc", n2="fc", n5="fc_2")
    with pytest.raises(ir.passes.PostconditionError, match="2 nodes are called fc_2"):
        NameNodesPass()(model)


def test_a_signature_replaces_what_the_exporter_left_in_bodies_too() -> None:
    inner = "g{k} () => (float[n, 4] o) {{ o = {op}(x) }}"
    model = graph_of(
        f"""g (float[n, 4] x, bool c) => (float[n, 4] y) {{
            y = If<then_branch = {inner.format(k=1, op="Relu")},
                   else_branch = {inner.format(k=2, op="Abs")}>(c)
        }}"""
    )
    before = written(model)
    model.metadata_props["exporter"] = model.graph.metadata_props["order"] = "{'b', 'a'}"
    model.producer_name, model.producer_version = "pytorch", "2.9"
    for node in model.graph.all_nodes():
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "/home/someone/model.py"
        node.doc_string = "from /home/someone"
    properties = {"arvg_trt.model": "toy", "arvg_trt.stride": "16"}
    assert SignPass(properties)(model).modified
    assert model.metadata_props == properties
    assert (model.producer_name, model.producer_version) == ("arvg-trt", "")
    assert b"someone" not in written(model) and b"'b', 'a'" not in written(model)
    model.metadata_props.clear()
    model.producer_name = model.producer_version = None
    assert written(model) == before


@pytest.mark.parametrize("only", ["properties", "producer_name", "doc_string", "metadata"])
def test_a_signed_graph_is_modified_where_one_thing_differs(only: str) -> None:
    model = traced()
    sign = SignPass({"model": "toy"})
    sign(model)
    assert not sign(model).modified
    if only == "properties":
        sign = SignPass({"model": "other"})
    elif only == "producer_name":
        model.producer_name = "pytorch"
    elif only == "doc_string":
        model.graph[0].doc_string = "a"
    else:
        model.graph[0].metadata_props["a"] = "b"
    assert sign(model).modified


IMAGE = "g (float[n, 3, h, w] x) => (float[n, 3, h, w] y, int64[4] s) { y = Relu(x) s = Shape(x) }"


def test_a_size_check_stands_before_all_that_reads_pixels_and_is_there_once() -> None:
    model = graph_of(IMAGE)
    assert InsertSizeCheckPass(4)(model).modified
    kinds = operators(model)
    assert kinds[-3:] == ["Reshape", "Relu", "Shape"]
    checked = model.graph[len(kinds) - 3]
    assert model.graph[len(kinds) - 2].inputs[0] is checked.outputs[0]
    assert not InsertSizeCheckPass(4)(model).modified and operators(model) == kinds
    x = np.arange(2 * 3 * 8 * 4, dtype=np.float32).reshape(2, 3, 8, 4) - 50
    found = run(model, x=x)
    np.testing.assert_array_equal(found["y"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["s"], x.shape)


@pytest.mark.parametrize(("height", "width"), [(8, 6), (5, 4), (2, 4), (8, 0)])
def test_other_sizes_are_refused(height: int, width: int) -> None:
    model = graph_of(IMAGE)
    InsertSizeCheckPass(4)(model)
    with pytest.raises(Exception, match="size_check/Reshape"):
        run(model, x=np.zeros((1, 3, height, width), np.float32))


def test_a_size_check_is_for_images_and_of_one_multiple() -> None:
    with pytest.raises(ir.passes.PreconditionError, match="no image"):
        InsertSizeCheckPass(4)(traced())
    model = graph_of(IMAGE)
    InsertSizeCheckPass(4)(model)
    with pytest.raises(ir.passes.PreconditionError, match="another multiple"):
        InsertSizeCheckPass(8)(model)
