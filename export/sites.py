"""List the sites of exported graphs: convolutions and linears, by a family's rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import onnx_ir as ir

from ..errors import ExportError, bounded
from ..graph.sites import FoldPart, ProducerFold, Site
from .passes.linears import bias_add, weight_of
from .passes.naming import SITE_OPS, is_linear, module_path

ATTENTION = "a product of attention"  # an engine's layer list says whether it is one kernel


def find_sites(
    graph: ir.Graph, graph_name: str, high_precision: Mapping[str, str]
) -> tuple[Site, ...]:
    """Return sites in graph order; `high_precision` maps a module path to why it is left out.

    Raises:
        ExportError: a path of `high_precision` that no node has (a renamed module).
    """
    sites: list[Site] = []
    for node in graph:
        if node.op_type not in SITE_OPS:
            continue
        weight = node.inputs[1]
        assert node.name and weight is not None and node.inputs[0] is not None
        if weight.const_value is None:
            sites.append(activation_product(node, graph_name))
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        path = module_path(node)
        source = node.inputs[0].producer()
        fold = None
        if source is not None and source.op_type == "GroupNormalization":
            scale, shift = source.inputs[1], source.inputs[2]
            assert scale is not None and shift is not None and scale.name and shift.name
            fold = (scale.name, shift.name)
        sites.append(
            Site(
                name=path,
                graph=graph_name,
                role=_conv_role(path, tuple(weight.const_value.shape.numpy())),
                op=node.op_type,
                node=node.name,
                weight=weight.name,
                bias=None if bias is None else bias.name,
                input=str(node.inputs[0].name),
                output=str(node.outputs[0].name),
                weight_shape=tuple(weight.const_value.shape.numpy()),
                channel_axis=1 if node.op_type.startswith("Conv") else last_axis(node.inputs[0]),
                shares_input_with=tuple(
                    module_path(user)
                    for user in node.inputs[0].consumers()
                    if user is not node and user.op_type in SITE_OPS
                ),
                fold=fold,
                excluded=high_precision.get(path),
            )
        )
    require_named(high_precision, sites, graph_name)
    return tuple(sites)


def last_axis(value: ir.Value) -> int:
    return 1 if value.shape is None else value.shape.rank() - 1


def require_named(excluded: Collection[str], sites: Sequence[Site], graph_name: str) -> None:
    """Raise ExportError for a module in `excluded` that the graph lacks (renamed)."""
    unknown = sorted(set(excluded) - {site.name for site in sites})
    if unknown:
        raise ExportError(
            f"no site named {bounded(unknown, 'names')} in the {graph_name} graph",
            do="the model's list of high-precision sites is out of date",
        )


def activation_product(node: ir.Node, graph_name: str) -> Site:
    """Return the site of an attention's product: the scores, or softmax times values."""
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None and node.name
    producer = left.producer()
    role = "bmm_pv" if producer is not None and producer.op_type == "Softmax" else "bmm_qk"
    return Site(
        name=f"{module_path(node)}.{role}",
        graph=graph_name,
        role=role,
        op=node.op_type,
        node=node.name,
        weight=None,
        bias=None,
        input=str(left.name),
        output=str(node.outputs[0].name),
        weight_shape=(),
        channel_axis=3,
        excluded=ATTENTION,
    )


def _conv_role(path: str, weight_shape: tuple[int, ...]) -> str:
    last = path.rsplit(".", 1)[-1]
    if last in ("q", "k", "v"):
        return last
    if last in ("proj_out", "nin_shortcut"):
        return {"proj_out": "proj", "nin_shortcut": "shortcut"}[last]
    if last in ("patcher", "unpatcher"):
        return "patcher"
    parts = path.split(".")
    if "nearest" in parts:
        return "codes"
    if parts[0] == "quantize":
        return {"quant_resi": "phi", "up": "resize", "down": "resize"}.get(parts[1], "linear")
    return "conv" if len(weight_shape) == 4 else "linear"


def linear_sites(
    graph: ir.Graph,
    graph_name: str,
    *,
    role: Callable[[str], str],
    fold: Callable[[str], ProducerFold | None],
    excluded: Mapping[str, str],
    token_axis: Mapping[str, int],
    position_input: str | None,
    of_all_positions: bool = False,
) -> tuple[Site, ...]:
    """Return the sites of a transformer's graph after `CanonicalLinearsPass`, in graph order.

    `role` and `fold` answer for a module's path, `token_axis` for a role; `excluded` says by
    module path why a site is left out.

    Raises:
        ExportError: a path of `excluded` that the graph has not (a renamed module).
    """
    sites: list[Site] = []
    for node in graph:
        if node.op_type != "MatMul":
            continue
        if not is_linear(node):
            if weight_of(node) is None:
                sites.append(activation_product(node, graph_name))
            continue
        x, weight = node.inputs
        add = bias_add(node)
        path = module_path(node)
        assert x is not None and weight is not None and weight.shape is not None and node.name
        kind = role(path)
        axis = token_axis.get(kind)
        sites.append(
            Site(
                name=path,
                graph=graph_name,
                role=kind,
                op="MatMul",
                node=node.name,
                weight=weight.name,
                bias=f"{path}.bias" if add is not None else None,
                input=str(x.name),
                output=str((add or node).outputs[0].name),
                weight_shape=tuple(weight.shape.numpy()),
                channel_axis=last_axis(x),
                shares_input_with=tuple(
                    module_path(user)
                    for user in x.consumers()
                    if user is not node and user.op_type == "MatMul"
                ),
                token_axis=axis,
                position_input=None if axis is None else position_input,
                of_all_positions=of_all_positions,
                producer_fold=fold(path),
                excluded=excluded.get(path),
            )
        )
    require_named(excluded, sites, graph_name)
    return tuple(sites)


def columns(linear: str, starts: Sequence[int], shift: int) -> ProducerFold:
    """Return the fold that divides output features of a linear; the bias at `shift` is shifted."""
    divide = [
        part
        for start in starts
        for part in (
            FoldPart(initializer=f"{linear}.weight", axis=1, start=start),
            FoldPart(initializer=f"{linear}.bias", axis=0, start=start),
        )
    ]
    shifted = FoldPart(initializer=f"{linear}.bias", axis=0, start=shift)
    return ProducerFold(divide=tuple(divide), subtract=(shifted,))
