"""Write the Inception network of FID as ONNX: Inception v3 as TensorFlow released it in 2015.

Every implementation of FID takes these weights; torchvision's Inception v3 is another network. The
layers, and where they differ from torchvision's, are those of the released graph as pytorch-fid and
torch-fidelity have it: bilinear resizing without half-pixel centres, means that leave padding out,
and a maximum in the last block's pooling branch.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...errors import ExportError
from .layers import Network, Weights
from .open import LOGITS, POOL, SPATIAL

SIDE = 299
EPSILON = 1e-3  # of the batch norms
CLASSES = 1008  # torchvision's network has 1,000
SPATIAL_CHANNELS = 7  # of mixed_6/conv, which sFID compares (Nash et al. 2021)

Padding = tuple[int, int]
WIDE, TALL = (0, 3), (3, 0)  # of kernels 1x7 and 7x1


def inception(weights: Weights, where: str) -> Network:
    """Return the graph from uint8 images [N, 3, H, W] of any size to the features of FID.

    `pool` [N, 2048] is for FID, KID, precision and recall; `spatial` [N, 2023], rows of 17x17x7
    with the channel last as the ADM evaluator flattens them, for sFID; `logits` [N, 1008], without
    the last layer's bias, for the Inception score.

    Raises:
        ExportError: these are not the weights of this network.
    """
    if "fc.weight" in weights and len(weights["fc.weight"]) != CLASSES:
        raise ExportError(
            f"fc.weight has {len(weights['fc.weight'])} classes, not {CLASSES}: this is another "
            "Inception than that of FID",
            where=where,
            do="name pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or "
            "weights-inception-2015-12-05-6726825d.pth of torch-fidelity",
        )
    net = _Inception(weights, where)
    x = resized(net, net.images("images"))
    x = net.block(x, "Conv2d_1a_3x3", stride=2)
    x = net.block(x, "Conv2d_2a_3x3")
    x = net.pool("MaxPool", net.block(x, "Conv2d_2b_3x3", padding=(1, 1)), stride=2)
    x = net.block(x, "Conv2d_3b_1x1")
    x = net.pool("MaxPool", net.block(x, "Conv2d_4a_3x3"), stride=2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = net.mixed_5(x, name)
    x = net.mixed_6a(x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = net.mixed_6(x, name)
    x = net.mixed_7(net.mixed_7(net.mixed_7a(x), "Mixed_7b", "AveragePool"), "Mixed_7c", "MaxPool")
    pool = net("ReduceMean", x, net.constant(np.array([2, 3])), keepdims=0)
    net.output(POOL, pool, ["N", 2048])
    head = net.take("fc.weight", (CLASSES, 2048)).T
    net.output(
        LOGITS, net("MatMul", pool, net.constant(np.ascontiguousarray(head))), ["N", CLASSES]
    )
    net.output(SPATIAL, net.spatial(), ["N", 17 * 17 * SPATIAL_CHANNELS])
    net.require_all_read()
    return net


def resized(net: Network, pixels: ir.Value) -> ir.Value:
    """Return pixels resized to 299x299 as TensorFlow 1 did, and scaled to [-1, 1)."""
    x = net(
        "Resize",
        pixels,
        None,
        None,
        net.constant(np.array([SIDE, SIDE])),
        axes=[2, 3],
        mode="linear",
        coordinate_transformation_mode="asymmetric",
    )
    return net("Div", net("Sub", x, net.constant(128.0)), net.constant(128.0))


class _Inception(Network):
    """Hold the blocks of Inception v3, named by the keys of its PyTorch checkpoints."""

    _sixth: ir.Value | None = None

    def block(self, x: ir.Value, name: str, stride: int = 1, padding: Padding = (0, 0)) -> ir.Value:
        """Add convolution, batch norm (folded into it) and ReLU."""
        weight = self.take(f"{name}.conv.weight").astype(np.float64)
        norm = [
            self.take(f"{name}.bn.{part}", (len(weight),)).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        self.unread.discard(f"{name}.bn.num_batches_tracked")
        scale = norm[0] / np.sqrt(norm[3] + EPSILON)
        folded = (weight * scale[:, None, None, None]).astype(np.float32)
        bias = (norm[1] - norm[2] * scale).astype(np.float32)
        return self("Relu", self.conv(x, folded, bias, stride, padding))

    def chain(self, x: ir.Value, *steps: tuple[str, Padding]) -> ir.Value:
        for name, padding in steps:
            x = self.block(x, name, padding=padding)
        return x

    def joined(self, *branches: ir.Value) -> ir.Value:
        return self("Concat", *branches, axis=1)

    def pooled(self, x: ir.Value, name: str, op: str = "AveragePool") -> ir.Value:
        return self.block(self.pool(op, x, 1, padding=1), f"{name}.branch_pool")

    def triple(self, x: ir.Value, name: str, stride: int = 1) -> ir.Value:
        part, last = f"{name}.branch3x3dbl", (1, 1) if stride == 1 else (0, 0)
        x = self.chain(x, (f"{part}_1", (0, 0)), (f"{part}_2", (1, 1)))
        return self.block(x, f"{part}_3", stride, last)

    def mixed_5(self, x: ir.Value, name: str) -> ir.Value:
        five = f"{name}.branch5x5"
        return self.joined(
            self.block(x, f"{name}.branch1x1"),
            self.chain(x, (f"{five}_1", (0, 0)), (f"{five}_2", (2, 2))),
            self.triple(x, name),
            self.pooled(x, name),
        )

    def mixed_6a(self, x: ir.Value) -> ir.Value:
        return self.joined(
            self.block(x, "Mixed_6a.branch3x3", 2),
            self.triple(x, "Mixed_6a", 2),
            self.pool("MaxPool", x, stride=2),
        )

    def mixed_6(self, x: ir.Value, name: str) -> ir.Value:
        seven, double = f"{name}.branch7x7", f"{name}.branch7x7dbl"
        first = self.block(x, f"{name}.branch1x1")
        if name == "Mixed_6d":  # TensorFlow's mixed_6
            self._sixth = first
        return self.joined(
            first,
            self.chain(x, (f"{seven}_1", (0, 0)), (f"{seven}_2", WIDE), (f"{seven}_3", TALL)),
            self.chain(
                x,
                (f"{double}_1", (0, 0)),
                *((f"{double}_{k}", TALL if k % 2 == 0 else WIDE) for k in range(2, 6)),
            ),
            self.pooled(x, name),
        )

    def mixed_7a(self, x: ir.Value) -> ir.Value:
        three, seven = "Mixed_7a.branch3x3", "Mixed_7a.branch7x7x3"
        ahead = self.chain(x, (f"{seven}_1", (0, 0)), (f"{seven}_2", WIDE), (f"{seven}_3", TALL))
        return self.joined(
            self.block(self.block(x, f"{three}_1"), f"{three}_2", 2),
            self.block(ahead, f"{seven}_4", 2),
            self.pool("MaxPool", x, stride=2),
        )

    def mixed_7(self, x: ir.Value, name: str, pooling: str) -> ir.Value:
        three, double = f"{name}.branch3x3", f"{name}.branch3x3dbl"
        single = self.block(x, f"{three}_1")
        deep = self.chain(x, (f"{double}_1", (0, 0)), (f"{double}_2", (1, 1)))
        return self.joined(
            self.block(x, f"{name}.branch1x1"),
            self.forked(single, f"{three}_2"),
            self.forked(deep, f"{double}_3"),
            self.pooled(x, name, pooling),
        )

    def forked(self, x: ir.Value, name: str) -> ir.Value:
        """Add a 1x3 and a 3x1 convolution side by side."""
        wide = self.block(x, f"{name}a", padding=(0, 1))
        return self.joined(wide, self.block(x, f"{name}b", padding=(1, 0)))

    def spatial(self) -> ir.Value:
        """Return the first seven channels of mixed_6/conv, the channel last, as rows."""
        assert self._sixth is not None
        ends = (np.array([v]) for v in (0, SPATIAL_CHANNELS, 1))
        cut = self("Slice", self._sixth, *(self.constant(v) for v in ends))
        return self("Flatten", self("Transpose", cut, perm=[0, 2, 3, 1]), axis=1)

    def require_all_read(self) -> None:
        """Raise ExportError for tensors that this network has no place for."""
        left = sorted(self.unread - {"fc.bias"})
        if left:
            raise ExportError(
                f"has {len(left)} tensors that FID's Inception has not, such as {left[0]}",
                where=self._where,
                do="name the published weights of this network",
            )
