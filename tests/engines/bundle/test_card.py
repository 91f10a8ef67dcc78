"""The README of a bundle says what runs each group, with the version where it belongs."""

from __future__ import annotations

import pytest

from arvg_trt.engines.bundle.card import runs_on
from arvg_trt.runtime.bundle.layout import TargetGroup


@pytest.mark.parametrize(
    ("kind", "version", "text"),
    [
        ("onnxruntime", "1.31.1", "ONNX Runtime 1.31.1, on any CPU"),
        ("openvino", "2026.4", "OpenVINO 2026.4, on the CPU"),
        ("tensorrt_rtx", "1.7.1.116", "TensorRT for RTX 1.7.1.116"),
        ("kit", "", "ONNX graphs to build an engine from on a device"),
    ],
)
def test_a_version_stands_behind_what_has_it(kind: str, version: str, text: str) -> None:
    group = TargetGroup(name="g", kind=kind, folder="f", version=version, files=())
    assert runs_on(group) == text
