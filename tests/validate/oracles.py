"""Published implementations that the metrics are compared with, where they are installed.

torch-fidelity, torchmetrics, lpips and DISTS import torchvision for data sets and published
weights, neither of which the compared functions touch. Where torchvision does not load, a module
takes its place that has the layer lists of AlexNet and VGG16 with random weights.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

ALEXNET = ((64, 11, 4, 2), "M", (192, 5, 1, 2), "M", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
VGG16 = (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M")


def layers(plan: tuple[Any, ...], pool: int) -> SimpleNamespace:
    """The convolutions of a network, as torchvision numbers them in `features`."""
    made: list[nn.Module] = []
    channels = 3
    for step in plan:
        if step == "M":
            made.append(nn.MaxPool2d(pool, 2))
            continue
        width, kernel, stride, padding = step if isinstance(step, tuple) else (step, 3, 1, 1)
        made += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
        channels = width
    return SimpleNamespace(features=nn.Sequential(*made))


class AnyName(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@cache
def torchvision() -> None:
    """Import torchvision, or put what these packages import of it in its place."""
    try:
        import_module("torchvision")
        return
    except (ImportError, RuntimeError):
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    names = ("", ".datasets", ".models", ".transforms", ".transforms.functional")
    parts = {name: AnyName(f"torchvision{name}") for name in names}
    for name, part in parts.items():
        part.__spec__ = ModuleSpec(part.__name__, None)
        sys.modules[part.__name__] = part
        parent, _, child = name.rpartition(".")
        if child:
            setattr(parts[parent], child, part)
    models: Any = parts[".models"]
    models.alexnet = lambda **_: layers(ALEXNET, 3)
    models.vgg16 = lambda **_: layers(VGG16, 2)


def published(module: str) -> Any:
    """Import a module of such a package, or skip the test if that is not installed."""
    torchvision()
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
