"""Make the ONNX networks of FID, LPIPS and DISTS from the weights that people have."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import ArvgError, ExportError
from ...extras import require_packages
from .inception import inception
from .layers import Network, Weights
from .perceptual import ALEXNET, VGG16, dists, lpips

NetworkName = Literal["inception", "lpips-alex", "lpips-vgg", "dists"]
TITLES: dict[NetworkName, str] = {
    "inception": "Inception v3 of FID (2015-12-05)",
    "lpips-alex": "LPIPS 0.1, AlexNet",
    "lpips-vgg": "LPIPS 0.1, VGG16",
    "dists": "DISTS, VGG16",
}
# Where the learned heads lie in the packages that ship them, the authors' own first.
HEADS: dict[NetworkName, tuple[tuple[str, str], ...]] = {
    "lpips-alex": (
        ("lpips", "weights/v0.1/alex.pth"),
        ("torchmetrics", "functional/image/lpips_models/alex.pth"),
    ),
    "lpips-vgg": (
        ("lpips", "weights/v0.1/vgg.pth"),
        ("torchmetrics", "functional/image/lpips_models/vgg.pth"),
    ),
    "dists": (("DISTS_pytorch", "weights.pt"),),
}
INSTALL = {"dists": "pip install --no-deps DISTS-pytorch"}


def make_network(name: NetworkName, weights: Path, output: Path, heads: Path | None = None) -> str:
    """Write the network to `output`, whole or not at all; returns its title.

    `weights` is the checkpoint of the Inception of FID, or torchvision's of AlexNet or VGG16.
    Without `heads` those of LPIPS and DISTS are taken from an installed package.

    Raises:
        ArvgError: the extra export, or a package with the heads, is not installed.
        ExportError: a checkpoint cannot be read, or is of another network.
        WorkspaceError: the output cannot be written.
    """
    require_packages("export")
    if name == "inception" and heads is not None:
        raise ExportError("Inception has no heads", where=f"--heads {heads}", do="leave it out")
    tensors = read(weights)
    if name == "inception":
        made = inception(tensors, str(weights))
    else:
        made = perceptual(name, tensors, str(weights), heads or installed_heads(name))
    made.write(output, TITLES[name])
    return TITLES[name]


def perceptual(name: NetworkName, tensors: Weights, where: str, heads: Path) -> Network:
    learned = read(heads)
    backbone = ALEXNET if name == "lpips-alex" else VGG16
    wanted = {f"lin{k}.model.1.weight": (1, c, 1, 1) for k, c in enumerate(backbone.channels)}
    if name == "dists":
        wanted = dict.fromkeys(("alpha", "beta"), (1, 3 + sum(backbone.channels), 1, 1))
    odd = [n for n, shape in wanted.items() if n not in learned or learned[n].shape != shape]
    if odd:
        raise ExportError(
            f"{odd[0]} is missing, or not {list(wanted[odd[0]])}",
            where=str(heads),
            do=f"name the heads of {TITLES[name]}",
        )
    if name == "dists":
        return dists(tensors, learned, where)
    return lpips(tensors, backbone, learned, where)


def installed_heads(name: NetworkName) -> Path:
    """Return the file of learned heads in an installed package, which is not imported.

    Raises:
        ArvgError: no package that ships them is installed.
    """
    for package, file in HEADS[name]:
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(folder) / file).is_file():
                return Path(folder) / file
    raise ArvgError(
        f"no installed package has the learned heads of {TITLES[name]}",
        do=f"{INSTALL.get(name, 'pip install --no-deps lpips')}, or give --heads FILE",
    )


def read(path: Path) -> Weights:
    """Return the tensors of a checkpoint as float32; no code from a pickle ever runs.

    Raises:
        ExportError: it cannot be read, or has NaN or infinity.
    """
    from ...export.checkpoint.read import read_all

    if not path.is_file():
        raise ExportError("no such file", where=str(path), do="name a file of weights")
    return {
        name: np.ascontiguousarray(tensor.detach().float().numpy())
        for name, tensor in read_all([path]).items()
    }
