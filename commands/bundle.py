"""Define the command that packs engines: into one signed file, or a repository of Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import RecipeError, WorkspaceError
from ..workspace.workspace import WORKSPACE_FILE, Workspace
from .support.console import ConsoleReporter, print_json
from .support.groups import command, option
from .support.options import PathArgument, json_option, workspace_argument
from .support.perform import quantization_name

if TYPE_CHECKING:
    from ..pipeline.bundle import BundleResult

MB = 1e6
MAX_BATCH = 8  # of models on a CPU in Triton, where nothing else is said


@command()
@workspace_argument
@click.option("--name", default=None, help="Name of the quantization. [default: int8]")
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    required=True,
    help="The bundle's file; for triton a new folder.",
)
@click.option(
    "--layout",
    type=click.Choice(["oci", "triton"]),
    default="oci",
    show_default=True,
    help="An OCI image in one file, or a model repository of Triton Inference Server.",
)
@option("--key", group="Signature", type=PathArgument(), help="Private key to sign with.")
@option(
    "--license",
    "licenses",
    group="Contents",
    multiple=True,
    type=PathArgument(),
    help="Licence of the weights. Repeatable. [default: that of shipped weights]",
)
@option(
    "--kit/--no-kit",
    group="Contents",
    default=True,
    show_default=True,
    help="Half-precision ONNX that a device builds its own engine from.",
)
@option(
    "--with-reference",
    group="Contents",
    is_flag=True,
    help="Also the FP32 and Q/DQ graphs that `validate` compares with.",
)
@option(
    "--packed",
    group="Contents",
    is_flag=True,
    help="Weights of graphs in their own few bits, which a device expands once.",
)
@option(
    "--group",
    "groups",
    group="Triton",
    multiple=True,
    help="Target group to serve, as `verify` lists them. Repeatable. [default: cpu and TensorRT]",
)
@option(
    "--max-batch",
    group="Triton",
    type=click.IntRange(1, 1024),
    help=f"Largest batch of models on the CPU. [default: {MAX_BATCH}]",
)
@json_option
def bundle(
    workspace: Path,
    name: str | None,
    output: Path,
    layout: str,
    key: Path | None,
    licenses: Sequence[Path],
    kit: bool,
    with_reference: bool,
    packed: bool,
    groups: Sequence[str],
    max_batch: int | None,
    as_json: bool,
) -> None:
    """Pack the engines of WORKSPACE into one signed file.

    The file is an OCI image layout in a tar; without a key it is not signed. With the layout triton
    they become a folder that Triton Inference Server serves.

    \b
    Example: arvg-trt bundle out/demo --name int8 --key ci.key -o demo.tar
    """
    from ..pipeline.bundle import bundle_workspace

    require_workspace(workspace)
    called = quantization_name(name, None)
    given = {"--key": key, "--with-reference": with_reference, "--no-kit": not kit}
    given["--packed"] = packed
    if layout == "triton":
        refuse_options(given, layout)
        write_repository(workspace, called, output, groups, max_batch, licenses, as_json)
        return
    refuse_options({"--group": groups, "--max-batch": max_batch}, layout)
    with ConsoleReporter(quiet=as_json) as reporter, Workspace(workspace) as opened:
        made = bundle_workspace(
            opened,
            called,
            output,
            reporter,
            key=key,
            licenses=licenses,
            kit=kit,
            reference=with_reference,
            packed=packed,
        )
    if as_json:
        print_json(made)
        return
    click.echo(f"{output}: {made.bytes / MB:.1f} MB, {', '.join(made.groups)}; {signers(made)}")
    click.echo(made.digest)


def require_workspace(root: Path) -> None:
    """Raise WorkspaceError for a folder that is not there, or that no stage has written to."""
    if not (root / WORKSPACE_FILE).is_file():
        what = "is no workspace" if root.exists() else "no such folder"
        raise WorkspaceError(what, where=str(root), do="name the folder that stages write to")


def refuse_options(given: Mapping[str, object], layout: str) -> None:
    """Raise RecipeError for the first option that is given and not for this layout."""
    for flag, value in given.items():
        if value:
            raise RecipeError(f"{flag} is not for --layout {layout}", do="leave it out")


def write_repository(
    workspace: Path,
    name: str,
    output: Path,
    groups: Sequence[str],
    max_batch: int | None,
    licenses: Sequence[Path],
    as_json: bool,
) -> None:
    """Write a Triton model repository, and print what it serves."""
    from ..pipeline.triton import write_triton

    with ConsoleReporter(quiet=as_json) as reporter, Workspace(workspace) as opened:
        made = write_triton(
            opened,
            name,
            output,
            reporter,
            groups=groups,
            max_batch=max_batch or MAX_BATCH,
            licenses=licenses,
        )
    if as_json:
        print_json(made)
        return
    click.echo(f"{output}: {made.bytes / MB:.1f} MB, {', '.join(made.groups)}")
    for served in (*made.models, *made.ensembles):
        click.echo(served)


def signers(made: BundleResult) -> str:
    """Return by which keys a bundle is signed, each by the first digits of its sha256."""
    hints = ", ".join(hint[:16] for hint in made.signatures)
    return f"signed by {hints}" if hints else "not signed"
