"""Define the command that makes the networks of FID, LPIPS and DISTS."""

from __future__ import annotations

from pathlib import Path

import click

from .support.console import print_json
from .support.groups import command
from .support.options import PathArgument, json_option

NAMES = ("inception", "lpips-alex", "lpips-vgg", "dists")


@command()
@click.argument("name", type=click.Choice(NAMES))
@click.argument("weights", type=PathArgument())
@click.option(
    "--heads",
    type=PathArgument(),
    metavar="FILE",
    help="Learned heads of LPIPS or DISTS. [default: those of the installed package lpips, "
    "torchmetrics or DISTS-pytorch]",
)
@click.option("-o", "--output", type=PathArgument(), required=True, help="ONNX file to write.")
@json_option
def network(name: str, weights: Path, heads: Path | None, output: Path, as_json: bool) -> None:
    """Make a network that measures images, as ONNX, from a file of published WEIGHTS.

    \b
    inception   features of FID: pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or
                weights-inception-2015-12-05-6726825d.pth of torch-fidelity
    lpips-alex  torchvision's alexnet-owt-7be5be79.pth
    lpips-vgg   torchvision's vgg16-397923af.pth
    dists       the same
    \b
    Example: arvg-trt network inception pt_inception-2015-12-05-6726825d.pth -o inception.onnx
    """
    from ..validate.quality.make import NetworkName, make_network

    named: dict[str, NetworkName] = {
        "inception": "inception",
        "lpips-alex": "lpips-alex",
        "lpips-vgg": "lpips-vgg",
        "dists": "dists",
    }
    title = make_network(named[name], weights, output, heads)
    if as_json:
        print_json({"network": title, "file": str(output)})
    else:
        click.echo(f"{output}: {title}")
