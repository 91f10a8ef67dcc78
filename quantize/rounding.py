"""Weights that are rounded with what their products are fed, by passes over the samples.

What tokenizers and generators share: which site needs which rows, and the road from a pass's
moments to codes and corrected biases. HessianSums of a pass are dropped before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..calibrate.calibration_run import CalibrationRun
from ..calibrate.observers.hessian import HessianObserver, HessianSums, Kernel, split_runs
from ..calibrate.observers.smoothed import SmoothedInput
from ..graph.builder import constant, constant_array
from ..graph.edit import insert_behind
from ..graph.linears import LINEAR_OPS, site_node
from ..graph.sites import Site
from ..numerics.gptq import STEPS, compensate
from ..numerics.parts import Weight
from ..numerics.qparams import QParams
from ..numerics.scheme import SitePlan
from ..numerics.weight import QuantizedWeight
from ..samples.files import sample_files


@dataclass(frozen=True, slots=True)
class Rounded:
    """Codes of a site's weight, and what its bias gains, [O] (None: nothing)."""

    weight: QuantizedWeight
    bias_shift: NDArray[np.float64] | None


@dataclass(frozen=True, slots=True)
class RoundingTask:
    """Hold a site to round: its node, its input as it is rounded, and its scaled weight.

    `weight` gives it [O, I, ...], `nearest` its rounding to nearest; `count` is how many elements
    a channel of the input had over all samples.
    """

    site: Site
    entry: SitePlan
    node: ir.Node
    view: SmoothedInput
    qparams: QParams | None
    count: int
    weight: Callable[[], Weight]
    nearest: Callable[[Weight], QuantizedWeight]

    @staticmethod
    def needed(entry: SitePlan, *, correct: bool) -> bool:
        """Return whether a site of this plan is rounded with data.

        `correct`: biases are corrected.
        """
        return entry.weight is not None and (correct or entry.rounding != "nearest")

    @property
    def compensates(self) -> bool:
        return self.entry.rounding == "gptq"


def round_sites(
    run: CalibrationRun, tasks: Sequence[RoundingTask], *, correct: bool, max_memory: int
) -> dict[str, Rounded]:
    """Round the sites of `tasks`, but for convolutions that are no plain product of patches.

    `correct` asks for corrected biases.

    Raises:
        OutOfMemory: the moments of one site exceed `max_memory` bytes.
        CalibrationError: a sample that gives NaN.
    """
    plain = [task for task in tasks if is_plain(task.node, task.site)]
    found: dict[str, Rounded] = {}
    for task, moments in moments_of_tasks(run, plain, means=correct, max_memory=max_memory):
        found[task.site.name] = rounded_weight(
            task.weight(), task.nearest, moments, compensates=task.compensates, correct=correct
        )
        run.progress("rounding", len(found), len(plain))
    return found


def rounded_weight(
    weight: Weight,
    nearest: Callable[[Weight], QuantizedWeight],
    moments: HessianSums,
    *,
    compensates: bool,
    correct: bool,
    steps: Sequence[float] = STEPS,
) -> Rounded:
    """Round a weight with the moments of what its product is fed."""
    codes = nearest(weight)
    if compensates and moments.square is not None:
        codes = compensate(np.asarray(weight), codes, moments.square, moments.count, steps)
    return Rounded(codes, mean_shift(weight, codes, moments) if correct else None)


def moments_of_tasks(
    run: CalibrationRun,
    tasks: Sequence[RoundingTask],
    *,
    means: bool,
    max_memory: int,
    squares: bool | None = None,
) -> Iterator[tuple[RoundingTask, HessianSums]]:
    """Yield each task with the moments of its rows.

    Their rows must be plain; `means` asks for sums of rows too. There are `squares` where a task
    compensates, or everywhere, or nowhere.

    Raises:
        OutOfMemory: the moments of one site exceed `max_memory` bytes.
        CalibrationError: a sample that gives NaN.
    """
    batches = max(1, len(sample_files(run.samples)[run.part]) / run.batch_size)
    observers: dict[str, HessianObserver] = {}
    readers: dict[str, list[RoundingTask]] = {}
    for members in by_rows(tasks).values():
        first = members[0]
        key = first.site.name
        readers[key] = members
        kernel = kernel_of(first.node, first.site)
        taps = int(np.prod(kernel.shape)) if kernel else 1
        observers[key] = HessianObserver(
            first.site.graph,
            first.view,
            input_channels(first) * taps,
            int(np.ceil(first.count / batches)),
            first.qparams,
            kernel,
            squares=any(t.compensates for t in members) if squares is None else squares,
            means=means,
        )
    for held in split_runs(observers, max_memory):
        moments = run.hessian(held)
        for key in held:
            for task in readers[key]:
                yield task, moments[key]


def correct_biases(graph: ir.Graph, sites: Sequence[Site], rounded: Mapping[str, Rounded]) -> None:
    """Add the corrections to the biases of sites that still have their float form."""
    for site in sites:
        found = rounded.get(site.name)
        if found is not None and found.bias_shift is not None:
            correct_bias(graph, site, found.bias_shift)


def by_rows(tasks: Sequence[RoundingTask]) -> dict[tuple[object, ...], list[RoundingTask]]:
    """Return tasks whose products are fed the same rows."""
    found: dict[tuple[object, ...], list[RoundingTask]] = {}
    for task in tasks:
        kernel = kernel_of(task.node, task.site)
        # Sites that quantize a tensor agree on its view; weight-only ones see it as it is.
        seen = (task.view.scale is None, task.qparams is None)
        key = (task.site.graph, task.view.tensor, *seen, kernel)
        found.setdefault(key, []).append(task)
    return found


def is_plain(node: ir.Node, site: Site) -> bool:
    """Return whether a site's rows can be made: of linears, ungrouped convolutions with pads."""
    if site.op in LINEAR_OPS:
        return True
    groups, pads = node.attributes.get("group"), node.attributes.get("auto_pad")
    return (
        site.op == "Conv"
        and (groups is None or groups.as_int() == 1)
        and (pads is None or pads.as_string() == "NOTSET")
    )


def input_channels(task: RoundingTask) -> int:
    """Return the number of input channels of a site's weight."""
    transposed = task.node.attributes.get("transB")
    first = task.site.op in LINEAR_OPS and not (transposed and transposed.as_int())
    return task.site.weight_shape[0 if first else 1]


def kernel_of(node: ir.Node, site: Site) -> Kernel | None:
    """Return the kernel of a convolution, None for a linear."""
    if site.op in LINEAR_OPS:
        return None
    shape = site.weight_shape[2:]

    def given(name: str, default: int, count: int) -> tuple[int, ...]:
        attribute = node.attributes.get(name)
        return tuple(attribute.as_ints()) if attribute else (default,) * count

    axes = len(shape)
    return Kernel(
        tuple(shape),
        given("strides", 1, axes),
        given("pads", 0, 2 * axes),
        given("dilations", 1, axes),
    )


def mean_shift(
    weight: Weight, rounded: QuantizedWeight, moments: HessianSums
) -> NDArray[np.float64]:
    """Return W E[x] - Q(W) E[Q(x)], [O]."""
    assert moments.plain is not None and moments.rounded is not None
    exact = np.asarray(weight).reshape(len(weight), -1).astype(np.float64)
    found = rounded.dequantize().reshape(exact.shape).astype(np.float64)
    shift: NDArray[np.float64] = (exact @ moments.plain - found @ moments.rounded) / max(
        1, moments.count
    )
    return shift


def correct_bias(graph: ir.Graph, site: Site, shift: NDArray[np.float64]) -> None:
    """Add `shift` [O] to the bias of a site that still has its float form, or give it one."""
    node = site_node(graph, site)
    user, index = (node, 2) if node.op_type != "MatMul" else added_bias(node, len(shift))
    if user is None:
        shape = (1,) * site.channel_axis + (-1,)
        held = constant(graph, f"{site.name}.mean.bias", shift.astype(np.float32).reshape(shape))
        insert_behind(graph, node.outputs[0], "Add", held, f"{site.name}/Add_mean")
        return
    bias = user.inputs[index] if len(user.inputs) > index else None
    before = np.zeros(len(shift), np.float32) if bias is None else constant_array(bias)
    total = (before.astype(np.float64) + shift.reshape(before.shape)).astype(np.float32)
    if bias is not None and len(list(bias.uses())) == 1:
        bias.const_value = ir.tensor(total, name=bias.name)
        return
    # Equal biases of several sites are one initializer.
    user.resize_inputs(max(index + 1, len(user.inputs)))
    user.replace_input_with(index, constant(graph, f"{site.name}.mean.bias", total))


def added_bias(product: ir.Node, size: int) -> tuple[ir.Node | None, int]:
    """Return the Add of `size` constants that alone reads a product, and which input they are."""
    value = product.outputs[0]
    users = list(value.uses())
    if len(users) != 1 or users[0].node.op_type != "Add" or value.is_graph_output():
        return None, 0
    index = 1 - users[0].idx
    bias = users[0].node.inputs[index]
    if bias is None or bias.const_value is None or bias.const_value.size != size:
        return None, 0
    return users[0].node, index
