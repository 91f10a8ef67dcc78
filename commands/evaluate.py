"""Define the commands that measure many images, and that make the networks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ..recipe.base import with_changes
from ..recipe.evaluate import EvaluateOptions
from .images import Opening
from .support.console import ConsoleReporter, print_json
from .support.groups import command, option
from .support.options import (
    PathArgument,
    explain_option,
    json_option,
    require_key_option,
    struct_options,
)

NAMES = ("inception", "lpips-alex", "lpips-vgg", "dists")


@command()
@click.argument("source", metavar="WORKSPACE|BUNDLE|IMAGES", type=PathArgument())
@struct_options(EvaluateOptions)
@option(
    "-o",
    "--output",
    group="Images",
    type=PathArgument(),
    help="Folder for images and features; what is there is gone on with.",
)
@require_key_option
@explain_option
@json_option
def evaluate(
    source: Path,
    output: Path | None,
    keys: Sequence[Path],
    explain: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Measure FID and related metrics on many images.

    The figures are FID, sFID, Inception score, precision, recall and KID. IMAGES may be a .npz of
    `generate --npz` or a folder of images, which are measured as they are. A generator's images are
    made in shards by workers; image k depends on the seed and k alone. An evaluation that was
    stopped goes on where it was.

    \b
    Example: arvg-trt evaluate out/ws -o out/50k --features inception.onnx \\
                 --reference VIRTUAL_imagenet256_labeled.npz --workers 4
    """
    from ..validate.evaluate.gates import gate_error
    from ..validate.evaluate.run import evaluate as evaluate_source
    from ..validate.evaluate.text import evaluation_lines

    options = with_changes(EvaluateOptions(), **changes)
    opening = Opening(keys, explain)
    with ConsoleReporter(quiet=as_json) as reporter:
        found = evaluate_source(source, options, output, reporter, opening.access)
    fields = {**msgspec.structs.asdict(found), "chosen": opening.chosen}
    error = gate_error(found.gates, found.folder or found.source)
    if not as_json:
        for line in evaluation_lines(found):
            click.echo(line)
    if error is not None:
        error.measured = fields
        raise error
    if as_json:
        print_json(fields)


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
    """Make the ONNX of a metric, such as FID, from WEIGHTS.

    Nothing is downloaded: WEIGHTS is a published file that you have.

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
