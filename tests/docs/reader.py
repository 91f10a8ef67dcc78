"""The folder that a reader of the documentation works in: their images, and what they have made."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ..command_line import Finished, arvg
from ..minis.minis import Mini, Quantized

CALIBRATION = ("coffee.png", "rocket.jpg")
HELD_OUT = ("astronaut.png", "chelsea.png")
SIDE = 160


def give_images(folder: Path) -> None:
    """Write `photo.jpg`, some `photos/`, and others that are `held_out/`."""
    images = Path(str(resources.files("skimage.data")))
    for place, names in (("photos", CALIBRATION), ("held_out", HELD_OUT)):
        (folder / place).mkdir()
        for name in names:
            small(images / name).save(folder / place / Path(name).with_suffix(".jpg"))
    small(images / HELD_OUT[0]).save(folder / "photo.jpg")


def give_graphs(folder: Path) -> None:
    """Write `model.onnx`, its halves `encoder.onnx` and `decoder.onnx`, and inputs for them."""
    rng = np.random.default_rng(0)
    weights = {
        "conv1.weight": rng.standard_normal((16, 3, 3, 3)) / 5,
        "conv2.weight": rng.standard_normal((16, 16, 3, 3)) / 12,
        "conv3.weight": rng.standard_normal((3, 16, 3, 3)) / 12,
    }
    encoder = [("image", "conv1.weight", "a"), ("a", "conv2.weight", "latent")]
    decoder = [("latent", "conv3.weight", "restored")]
    for name, steps in (("encoder", encoder), ("decoder", decoder), ("model", encoder + decoder)):
        onnx.save(convolutions(steps, weights), folder / f"{name}.onnx")
    images = rng.standard_normal((96, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "calibration.npz", image=images[:64])
    np.savez(folder / "held_out.npz", image=images[64:])


def convolutions(
    steps: Sequence[tuple[str, str, str]], weights: dict[str, NDArray[np.float64]]
) -> onnx.ModelProto:
    """Convolutions one after another, each with a ReLU, by their input, weight and output."""
    nodes, names = [], {weight for _, weight, _ in steps}
    for source, weight, output in steps:
        nodes += [
            helper.make_node("Conv", [source, weight], [f"{output}.raw"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{output}.raw"], [output]),
        ]
    first, last = steps[0], steps[-1]
    shape = (weights[first[1]].shape[1], weights[last[1]].shape[0])
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info(first[0], TensorProto.FLOAT, ["n", shape[0], 16, 16])],
        [helper.make_tensor_value_info(last[2], TensorProto.FLOAT, ["n", shape[1], 16, 16])],
        [numpy_helper.from_array(weights[n].astype(np.float32), n) for n in sorted(names)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def small(image: Path) -> Image.Image:
    return Image.open(image).convert("RGB").resize((SIDE, SIDE))


class Belongings:
    """Gives a reader the workspaces that a page says they have; each is made by commands."""

    def __init__(
        self,
        finished: Callable[[], Finished],
        mini_of: Callable[[str], Mini],
        quantized_of: Callable[[str], Quantized],
    ) -> None:
        self.finished, self.mini_of, self.quantized_of = finished, mini_of, quantized_of

    def give(self, place: str, folder: Path) -> None:
        """Put what a page calls `WHAT at PLACE` into a reader's folder.

        WHAT is `var-mini` (exported), `quantized var-mini` (as w8a8), or `calibrated model.onnx`;
        `out/demo` alone is a tokenizer quantized as int8, with its report and its engine, and
        `demo.tar` its bundle, which `ci.key` signed.
        """
        what, _, name = place.partition(" at ")
        if what == "out/demo":
            shutil.copytree(self.finished().workspace, folder / what)
            assert arvg("build", folder / what, "--name", "int8").code == 0
        elif what == "demo.tar":
            self.give("out/demo", folder)
            assert arvg("keygen", folder / "ci").code == 0
            args = ("--name", "int8", "--key", folder / "ci.key", "-o", folder / what)
            assert arvg("bundle", folder / "out/demo", *args).code == 0
        elif what == "calibrated model.onnx":
            calibrate_own(folder, folder / name)
        elif what.startswith("quantized "):
            family = what.removeprefix("quantized ").removesuffix("-mini")
            shutil.copytree(self.quantized_of(family).workspace, folder / name)
        else:
            shutil.copytree(self.mini_of(what.removesuffix("-mini")).workspace, folder / name)


def calibrate_own(folder: Path, workspace: Path) -> None:
    """Export and calibrate the reader's `model.onnx`."""
    outcome = arvg("export", "onnx", workspace, "--graph", folder / "model.onnx")
    assert outcome.code == 0, outcome.err
    outcome = arvg("calibrate", workspace, "--feeds", folder / "calibration.npz", "--samples", 8)
    assert outcome.code == 0, outcome.err
