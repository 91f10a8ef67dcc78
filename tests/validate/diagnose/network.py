"""A network of a user's own in a quantized workspace, with one-sided inputs and a norm's fold."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ...command_line import arvg
from ...families.custom.models import small_graph
from ...shared import made_once

BITS = 6


def write_network(folder: Path) -> Path:
    """A norm, three linears and a ReLU: x [n, 4, 24] to y [n, 4, 8]."""
    rng = np.random.default_rng(3)

    def drawn(*shape: int, spread: float = 1.0) -> np.ndarray:
        return rng.normal(0, spread, shape).astype(np.float32)

    wide = np.ones(24, np.float32)
    wide[[2, 7]] = (9.0, 5.0)
    nodes = [
        ("LayerNormalization", ["x", "g", "b"], "n", {"axis": -1}),
        ("MatMul", ["n", "w1"], "p1", {}),
        ("Add", ["p1", "b1"], "h1", {}),
        ("Relu", ["h1"], "r1", {}),
        ("MatMul", ["r1", "w2"], "p2", {}),
        ("Add", ["p2", "b2"], "h2", {}),
        ("Relu", ["h2"], "r2", {}),
        ("MatMul", ["r2", "w3"], "y", {}),
    ]
    constants = {
        "g": wide,
        "b": drawn(24, spread=0.5),
        "w1": drawn(24, 32, spread=0.2),
        "b1": drawn(32),
        "w2": drawn(32, 16, spread=0.2),
        "b2": drawn(16),
        "w3": drawn(16, 8, spread=0.2),
    }
    names = {"p1": "first", "p2": "second", "y": "last"}
    return small_graph(folder / "net.onnx", nodes, constants, x=("n", 4, 24), names=names)


def write_feeds(path: Path, seed: int, count: int = 6) -> Path:
    np.savez(path, x=np.random.default_rng(seed).normal(0, 1, (count, 4, 24)).astype(np.float32))
    return path


@pytest.fixture(scope="session")
def diagnosed_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the network's workspace `ws`, quantized as plain, smooth and weights; and
    `held.npz`, what it was not calibrated on.
    """

    def make(root: Path) -> None:
        graph, workspace = write_network(root), root / "ws"
        write_feeds(root / "held.npz", 1)
        bits = ("--include", "*", "--weight-bits", BITS)
        inputs = ("--activation-bits", BITS)
        for command in (
            ("export", "onnx", workspace, "--graph", graph),
            ("calibrate", workspace, "--feeds", write_feeds(root / "cal.npz", 0), "--samples", 6),
            ("quantize", workspace, "--name", "plain", *bits, *inputs, "--smoothing", 0),
            ("quantize", workspace, "--name", "smooth", *bits, *inputs, "--smoothing", 0.5),
            ("quantize", workspace, "--name", "weights", *bits, "--activation-bits", 32),
        ):
            outcome = arvg(*command)
            assert outcome.code == 0, outcome

    return made_once(tmp_path_factory, "diagnosed_network", make)[0]


@pytest.fixture
def copied(diagnosed_network: Path, tmp_path: Path) -> Path:
    """A copy of the network's folder that a test may change."""
    return Path(shutil.copytree(diagnosed_network, tmp_path / "copy"))
