"""Write LPIPS and DISTS as ONNX: two uint8 images to their distance, on AlexNet or VGG16.

The backbones are torchvision's, trained on ImageNet; the learned heads ship in the packages of
their authors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .layers import Network, Weights


@dataclass(frozen=True, slots=True)
class Backbone:
    """Describe the `features` of a network of torchvision, as far as these distances read them.

    `convolutions` are (index in `features`, stride, padding); a ReLU follows each. `pools` are
    the indices of its max pools, of a side of `pool` pixels and stride 2. `taps` are the
    convolutions whose activations are compared, `channels` their widths.
    """

    convolutions: tuple[tuple[int, int, int], ...]
    pools: tuple[int, ...]
    pool: int
    taps: tuple[int, ...]
    channels: tuple[int, ...]


ALEXNET = Backbone(
    convolutions=((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)),
    pools=(2, 5),
    pool=3,
    taps=(0, 3, 6, 8, 10),
    channels=(64, 192, 384, 256, 256),
)
VGG16 = Backbone(
    convolutions=tuple((k, 1, 1) for k in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)),
    pools=(4, 9, 16, 23),
    pool=2,
    taps=(2, 7, 14, 21, 28),
    channels=(64, 128, 256, 512, 512),
)

Pooling = Callable[[Network, ir.Value, int], ir.Value]  # of so many channels

# LPIPS 0.1 takes images in [-1, 1] to the scale of ImageNet's; DISTS those in [0, 1].
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LPIPS_EPSILON = 1e-10
DISTS_EPSILON, POOL_EPSILON = 1e-6, 1e-12


def lpips(weights: Weights, backbone: Backbone, heads: Weights, where: str) -> Network:
    """Return the graph of LPIPS 0.1 (Zhang et al. 2018), `distance` [N] of `a` and `b`.

    `heads` has `lin0.model.1.weight` [1, C, 1, 1] and so on, as the package lpips ships them.

    Raises:
        ExportError: tensors of the backbone are missing or misshapen.
    """
    net = Network(weights, where)
    image = net("Sub", both(net), net.constant(1.0))
    scaled = normalized(net, image, LPIPS_SHIFT, LPIPS_SCALE)
    total: ir.Value | None = None
    for k, x in enumerate(activations(net, scaled, backbone)):
        head = heads[f"lin{k}.model.1.weight"]
        squares = net("Mul", x, x)
        norm = net("Sqrt", net("ReduceSum", squares, axis(net, 1), keepdims=1))
        unit = net("Div", x, net("Add", norm, net.constant(LPIPS_EPSILON)))
        first, second = net.split(unit)
        gap = net("Sub", first, second)
        weighed = net.conv(net("Mul", gap, gap), head, None)
        layer = net("ReduceMean", weighed, axis(net, 1, 2, 3), keepdims=0)
        total = layer if total is None else net("Add", total, layer)
    assert total is not None
    net.output("distance", total, ["N"])
    return net


def dists(weights: Weights, heads: Weights, where: str) -> Network:
    """Return the graph of DISTS (Ding et al. 2020) on VGG16, `distance` [N] of `a` and `b`.

    `heads` has `alpha` and `beta`, [1, 1475, 1, 1], as the package DISTS-pytorch ships them.

    Raises:
        ExportError: tensors of VGG16 are missing or misshapen.
    """
    net = Network(weights, where)
    image = net("Mul", both(net), net.constant(0.5))
    scaled = normalized(net, image, IMAGENET_MEAN, IMAGENET_DEVIATION)
    alpha, beta = (heads[name].astype(np.float64) for name in ("alpha", "beta"))
    whole = float(alpha.sum() + beta.sum())
    widths = (3, *VGG16.channels)
    cuts = np.cumsum(widths)[:-1]
    shares = [np.split((v / whole).astype(np.float32), cuts, axis=1) for v in (alpha, beta)]
    likeness: ir.Value | None = None
    for k, x in enumerate((image, *activations(net, scaled, VGG16, l2_pool))):
        luminance, structure = similarities(net, x)
        for share, part in ((shares[0][k], luminance), (shares[1][k], structure)):
            weighed = net("Mul", part, net.constant(share))
            layer = net("ReduceSum", weighed, axis(net, 1, 2, 3), keepdims=0)
            likeness = layer if likeness is None else net("Add", likeness, layer)
    assert likeness is not None
    net.output("distance", net("Sub", net.constant(1.0), likeness), ["N"])
    return net


def both(net: Network) -> ir.Value:
    """Return both inputs, one batch after the other, in [0, 2]."""
    pixels = net("Concat", net.images("a"), net.images("b"), axis=0)
    return net("Div", pixels, net.constant(127.5))


def normalized(
    net: Network, x: ir.Value, shift: Sequence[float], scale: Sequence[float]
) -> ir.Value:
    terms = (net.constant(np.reshape(v, (1, 3, 1, 1))) for v in (shift, scale))
    return net("Div", net("Sub", x, next(terms)), next(terms))


def activations(
    net: Network, x: ir.Value, backbone: Backbone, pooling: Pooling | None = None
) -> Iterator[ir.Value]:
    """Yield what each tap of a backbone gives; `pooling` takes the place of its max pools."""
    convolutions = {index: steps for index, *steps in backbone.convolutions}
    channels = 3
    for index in range(backbone.taps[-1] + 1):
        if index in backbone.pools:
            if pooling is None:
                x = net.pool("MaxPool", x, stride=2, size=backbone.pool)
            else:
                x = pooling(net, x, channels)
        if index not in convolutions:
            continue
        stride, padding = convolutions[index]
        weight = net.take(f"features.{index}.weight")
        bias = net.take(f"features.{index}.bias", (len(weight),))
        x = net("Relu", net.conv(x, weight, bias, stride, (padding, padding)))
        channels = len(weight)
        if index in backbone.taps:
            net.take(f"features.{index}.bias", (backbone.channels[backbone.taps.index(index)],))
            yield x


def l2_pool(net: Network, x: ir.Value, channels: int) -> ir.Value:
    """Return the root of a weighed mean of squares of 3x3 neighbours, stride 2, as DISTS pools."""
    bell = np.hanning(5)[1:-1]
    kernel = np.outer(bell, bell) / np.square(bell.sum())
    weight = np.broadcast_to(kernel.astype(np.float32), (channels, 1, 3, 3)).copy()
    squares = net.conv(net("Mul", x, x), weight, None, stride=2, padding=(1, 1), group=channels)
    return net("Sqrt", net("Add", squares, net.constant(POOL_EPSILON)))


def similarities(net: Network, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return how alike means and structures of two images are, [N, C, 1, 1] each.

    Variances and the covariance are of differences from the mean, where the authors' code takes
    the covariance as E[xy] - E[x]E[y], which loses digits.
    """

    def mean(value: ir.Value) -> ir.Value:
        return net("ReduceMean", value, axis(net, 2, 3), keepdims=1)

    def alike(product: ir.Value, squares: ir.Value) -> ir.Value:
        epsilon = net.constant(DISTS_EPSILON)
        twice = net("Add", net("Mul", net.constant(2.0), product), epsilon)
        return net("Div", twice, net("Add", squares, epsilon))

    means = mean(x)
    apart = net("Sub", x, means)
    halves = net.split(means), net.split(apart)
    (mean_a, mean_b), (apart_a, apart_b) = halves
    luminance = alike(
        net("Mul", mean_a, mean_b),
        net("Add", net("Mul", mean_a, mean_a), net("Mul", mean_b, mean_b)),
    )
    variance_a, variance_b = net.split(mean(net("Mul", apart, apart)))
    covariance = mean(net("Mul", apart_a, apart_b))
    return luminance, alike(covariance, net("Add", variance_a, variance_b))


def axis(net: Network, *axes: int) -> ir.Value:
    return net.constant(np.array(axes))
