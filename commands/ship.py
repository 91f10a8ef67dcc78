"""Define the commands that ship engines: one signed bundle, its keys and its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import RecipeError
from ..workspace.workspace import Workspace
from .support.console import ConsoleReporter, print_json
from .support.groups import command, option
from .support.options import PathArgument, json_option, require_key_option, workspace_argument
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
    groups: Sequence[str],
    max_batch: int | None,
    as_json: bool,
) -> None:
    """Pack the engines of WORKSPACE into one file, an OCI image layout, and sign it.

    With --layout triton they become a folder that Triton Inference Server serves.

    \b
    Example: arvg-trt bundle out/demo --name int8 --key ci.key -o demo.tar
    """
    from ..pipeline.bundle import bundle_workspace

    called = quantization_name(name, None)
    given = {"--key": key, "--with-reference": with_reference, "--no-kit": not kit}
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
        )
    if as_json:
        print_json(made)
        return
    click.echo(f"{output}: {made.bytes / MB:.1f} MB, {', '.join(made.groups)}; {signers(made)}")
    click.echo(made.digest)


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


@command()
@click.argument("output", metavar="NAME", type=PathArgument())
@json_option
def keygen(output: Path, as_json: bool) -> None:
    """Make a pair of keys to sign bundles with: NAME.key, which stays secret, and NAME.pub.

    ARVG_TRT_KEY_PASSWORD encrypts the private key, and opens it when something is signed.

    \b
    Example: arvg-trt keygen ci
    """
    from ..pipeline.ship import make_keys
    from ..runtime.bundle.signature import key_hint, read_public_key

    private, public = make_keys(output)
    hint = key_hint(read_public_key(public))
    if as_json:
        print_json({"written": [private, public], "fingerprint": hint})
        return
    click.echo(f"{private}: keep it secret; it signs")
    click.echo(f"{public}: give it to devices; it verifies ({hint[:16]})")


@command()
@click.argument("file", type=PathArgument())
@click.option("--key", type=PathArgument(), required=True, help="Private key to sign with.")
@click.option("-o", "--output", type=PathArgument(), help="Another file. [default: FILE itself]")
@json_option
def sign(file: Path, key: Path, output: Path | None, as_json: bool) -> None:
    """Sign the bundle FILE; signatures of other keys stay.

    \b
    Example: arvg-trt sign demo.tar --key release.key
    """
    from ..pipeline.bundle import sign_file

    with ConsoleReporter(quiet=as_json) as reporter:
        made = sign_file(file, key, output, reporter)
    if as_json:
        print_json(made)
        return
    click.echo(f"{made.written[0]}: {signers(made)}")


def signers(made: BundleResult) -> str:
    """Return by which keys a bundle is signed, each by the first digits of its sha256."""
    hints = ", ".join(hint[:16] for hint in made.signatures)
    return f"signed by {hints}" if hints else "not signed"


@command()
@click.argument("file", type=PathArgument())
@require_key_option
@json_option
def verify(file: Path, keys: Sequence[Path], as_json: bool) -> None:
    """Check every byte of the bundle FILE and its signature; say what of it opens here.

    Nothing in it is opened. A bundle that is damaged, changed, or not signed as required exits
    with 12.

    \b
    Example: arvg-trt verify demo.tar --require-key ci.pub
    """
    from ..pipeline.ship import verify_file

    with ConsoleReporter(quiet=as_json) as reporter:
        found = verify_file(file, keys, reporter)
    if as_json:
        print_json(found)
        return
    click.echo(f"{found.bundle}: {found.model}, {found.name}; every byte is as it was packed")
    click.echo(found.digest)
    for name in found.signed_by:
        click.echo(f"signed by {name}")
    if not found.signed_by:
        hints = ", ".join(hint[:16] for hint in found.signatures)
        text = f"signed by {hints}, unchecked: no key is required" if hints else "not signed"
        click.echo(text)
    for step in found.chain:
        state = "opens here" if step.opens else "does not open here"
        click.echo(f"{step.group}: {step.step}, {state}: {step.reason}")


@command()
@click.option("--clear", is_flag=True, help="Remove what was not opened for --days.")
@click.option(
    "--days", type=click.FloatRange(0), default=0, show_default=True, help="Age of what goes."
)
@json_option
def cache(clear: bool, days: float, as_json: bool) -> None:
    """List what this machine keeps of bundles, or remove it.

    It lies in ARVG_TRT_CACHE, else in XDG_CACHE_HOME or ~/.cache, and is made again when needed.

    \b
    Example: arvg-trt cache --clear --days 7
    """
    from ..runtime.bundle.cache import cache_entries, clear_cache

    removed = clear_cache(days) if clear else []
    entries = cache_entries()
    if as_json:
        print_json({"removed": removed, "entries": entries})
        return
    for folder in removed:
        click.echo(f"removed {folder}")
    for entry in entries:
        click.echo(f"{entry.bytes / MB:8.1f} MB  {entry.days:5.1f} days  {entry.folder}")
    if not removed and not entries:
        click.echo("nothing")


@command()
@click.argument("file", type=PathArgument())
@click.option("-o", "--output", type=PathArgument(), required=True, help="A new folder.")
@click.option("--group", help="One target group, as `verify` lists them. [default: all]")
@click.option("--signature", type=PathArgument(), help="File for the first signature.")
@require_key_option
@json_option
def unpack(
    file: Path,
    output: Path,
    group: str | None,
    signature: Path | None,
    keys: Sequence[Path],
    as_json: bool,
) -> None:
    """Unpack the bundle FILE, or what one kind of device takes, to a folder.

    \b
    Example: arvg-trt unpack demo.tar --group cpu -o engines/
    """
    from ..pipeline.ship import unpack_file

    files = unpack_file(file, output, group, keys, signature)
    if as_json:
        print_json(
            {
                "written": [p for p in (output, signature) if p],
                "files": [file.path for file in files],
            }
        )
        return
    click.echo(f"{output}: {len(files)} files, {sum(f.bytes for f in files) / MB:.1f} MB")
