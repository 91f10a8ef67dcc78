"""Find the group norms whose digits ONNX Runtime's operator would lose on real values.

Its GroupNormalization, a function body on a CPU, takes a variance as the mean of the squares less
the square of the mean. Against float64, on a group of 2**18 values, that is off by 1e-5 of the
deviation where the mean is 0, by 1e-4 where it is three deviations and by 1e-3 where it is ten;
PyTorch by 1e-6 in all of them, and so are the nodes that `norms` writes. The means depend on the
checkpoint, so each norm is run on the values of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...runtime.sessions.open import open_session
from ...runtime.sessions.session import Session
from ..tracing import OPSET
from .norms import MARK

# Relative to the deviation. Thirty norms in a row with a smaller error each stay below the 5e-4
# that a graph may differ by. In the encoder of a VQVAE of width 32 at 512x512 pixels 5 of 28 are
# above: its latent is off by 3.7e-3 with the operator alone, by 7e-5 with those written out, and
# by 2e-5 in PyTorch.
MOST_DRIFT = 2e-4
Floats = NDArray[np.float32]


@torch.inference_mode()
def mark_drifting_norms(model: nn.Module, run: Callable[[], object]) -> dict[str, float]:
    """Mark the norms of `model` that are off by more than `MOST_DRIFT`; returns all errors by path.

    `run` computes with the model on a picture; values are [1, C, H, W] where a norm sees them.
    """
    drifts: dict[str, float] = {}

    def measuring(path: str) -> Callable[[nn.Module, Any], None]:
        def measure(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(norm, nn.GroupNorm)
            error = drift(inputs[0].float().numpy(), norm.num_groups, norm.eps)
            drifts[path] = float(np.maximum(error, drifts.get(path, 0.0)))

        return measure

    norms = {path: m for path, m in model.named_modules() if isinstance(m, nn.GroupNorm)}
    hooks = [norm.register_forward_pre_hook(measuring(path)) for path, norm in norms.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for path, error in drifts.items():
        setattr(norms[path], MARK, not error <= MOST_DRIFT)
    return drifts


def drift(x: Floats, groups: int, epsilon: float) -> float:
    """Return the largest error of ONNX Runtime's operator on x [N, C, H, W], at deviation 1."""
    wide = x.astype(np.float64).reshape(len(x), groups, -1)
    deviation = np.sqrt(wide.var(axis=2, keepdims=True) + epsilon)
    wanted = ((wide - wide.mean(axis=2, keepdims=True)) / deviation).reshape(x.shape)
    value = operator(x.shape[1], groups, epsilon).run({"x": x})["y"]
    return float(np.abs(value - wanted).max(initial=0.0))


def operator(channels: int, groups: int, epsilon: float) -> Session:
    """Open a session of one GroupNormalization without an affine."""
    x = ir.val("x", ir.DataType.FLOAT, ["n", channels, "h", "w"])
    affine = {"scale": np.ones(channels, np.float32), "bias": np.zeros(channels, np.float32)}
    constants = [ir.val(k, const_value=ir.tensor(v, name=k)) for k, v in affine.items()]
    attributes = {"num_groups": groups, "epsilon": epsilon}
    node = ir.node("GroupNormalization", [x, *constants], attributes, name="norm")
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph(
        [x],
        node.outputs,
        nodes=[node],
        initializers=constants,
        opset_imports={"": OPSET},
        name="norm",
    )
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return open_session(Path("norm.onnx"), optimized=False, graph=model)
