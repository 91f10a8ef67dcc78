"""Passes in a row, and what removes what nothing reads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from arvg_trt.errors import ArvgError, ExportError
from arvg_trt.graph.passes import Sequential, ensure, remove_dead_nodes, remove_unused, require

from .text import graph_of, operators, random, written

LINE = "g (float[n, 4] x) => (float[n, 4] y)"


class Failing(ir.passes.InPlacePass):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        raise self.error


class Nothing(ir.passes.InPlacePass):
    def __init__(self, modified: bool = False) -> None:
        super().__init__()
        self.modified = modified

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, self.modified)


def relu() -> ir.Model:
    return graph_of(f"{LINE} {{ y = Relu(x) }}")


def test_a_users_mistake_stays_one_line_in_a_row_of_passes_and_a_row_within() -> None:
    mistake = ExportError("a Gemm is not a linear", where="fc", do="report it")
    for passes in (Sequential(Nothing(), Failing(mistake)), Sequential(Failing(mistake))):
        with pytest.raises(ArvgError) as caught:
            Sequential(Nothing(), passes)(relu())
        assert caught.value is mistake
        assert str(caught.value) == "fc: a Gemm is not a linear (report it)"


@pytest.mark.parametrize("error", [ValueError("odd"), ir.passes.PreconditionError("odd")])
def test_any_other_error_says_in_which_pass_it_was(error: Exception) -> None:
    with pytest.raises(ir.passes.PassError, match="Failing") as caught:
        Sequential(Nothing(), Failing(error))(relu())
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("modified", [(False, False), (False, True), (True, False)])
def test_a_row_of_passes_changed_a_model_if_one_of_them_did(modified: tuple[bool, bool]) -> None:
    model = relu()
    result = Sequential(*map(Nothing, modified))(model)
    assert result.model is model and result.modified == any(modified)


def test_the_first_problem_is_raised_and_none_is_no_error() -> None:
    with pytest.raises(ir.passes.PreconditionError, match=r"^first$"):
        require(["first", "second"])
    with pytest.raises(ir.passes.PostconditionError, match=r"^first$"):
        ensure(iter(["first", "second"]))
    require([])
    ensure([])


def unread() -> ir.Model:
    return graph_of(
        f"""{LINE} {{
            a, unread_output = Dropout(x)
            y = Add(a, read)
            b = Mul(x, of_a_dead_node)
            c = Relu(b)
        }}""",
        read=random(0, 4),
        of_a_dead_node=random(1, 4),
        unread=random(2, 4),
    )


@pytest.mark.parametrize("remove", [remove_unused, remove_dead_nodes])
def test_dead_nodes_and_the_constants_of_dead_nodes_go(remove: Callable[[ir.Graph], bool]) -> None:
    model = unread()
    assert remove(model.graph)
    assert operators(model) == ["Dropout", "Add"]
    assert list(model.graph.initializers) == ["read"]
    after = written(model)
    assert not remove(model.graph) and written(model) == after


@pytest.mark.parametrize("remove", [remove_unused, remove_dead_nodes])
def test_a_constant_that_is_an_output_stays(remove: Callable[[ir.Graph], bool]) -> None:
    model = graph_of(f"{LINE} {{ y = Relu(x) }}", c=np.ones(4, np.float32))
    model.graph.outputs.append(model.graph.initializers["c"])
    assert not remove(model.graph)
    assert list(model.graph.initializers) == ["c"]


def test_only_the_librarys_pass_cuts_off_empty_inputs_and_outputs_and_says_so() -> None:
    """Engines of ONNX Runtime keep theirs: MatMulIntegerToFloat is written with all its inputs."""

    def clipped() -> ir.Model:
        model = graph_of(f"{LINE} {{ a, mask = Dropout(x) y = Clip(a, low) }}", low=np.float32(0))
        model.graph[1].resize_inputs(3)
        return model

    model = clipped()
    assert not remove_dead_nodes(model.graph)
    assert [len(node.inputs) for node in model.graph] == [1, 3]
    assert remove_unused(model.graph)
    assert [(len(n.inputs), len(n.outputs)) for n in model.graph] == [(1, 1), (2, 1)]
    assert not remove_unused(model.graph)
