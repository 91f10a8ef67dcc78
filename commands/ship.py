"""Define the commands round a bundle: keys, signatures, checks, what is unpacked of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .bundle import signers
from .support.console import ConsoleReporter, print_json
from .support.groups import command
from .support.options import PathArgument, json_option, require_key_option

if TYPE_CHECKING:
    from ..runtime.bundle.choose import ChainStep

MB = 1e6


@command()
@click.argument("output", metavar="NAME", type=PathArgument())
@json_option
def keygen(output: Path, as_json: bool) -> None:
    """Make a pair of keys to sign bundles with.

    NAME.key signs and stays secret, NAME.pub verifies. ARVG_TRT_KEY_PASSWORD encrypts the private
    key, and opens it when something is signed.

    \b
    Example: arvg-trt keygen ci
    """
    from ..pipeline.ship import make_keys
    from ..runtime.bundle.keys import key_hint, read_public_key

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


@command()
@click.argument("file", type=PathArgument())
@require_key_option
@json_option
def verify(file: Path, keys: Sequence[Path], as_json: bool) -> None:
    """Check a bundle and its signature; say what opens here.

    Every byte of FILE is read, and nothing in it is opened. A bundle that is damaged, changed, or
    not signed as required exits with 12.

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
        size = found.image_sizes.get(step.group)
        taken = "" if size is None else f"; takes images of {size}x{size}"
        builder = found.builders.get(step.group, "")
        built = f"; built by {builder}" if builder and builder not in step.reason else ""
        click.echo(f"{step_line(step, file)}{built}{taken}")


def step_line(step: ChainStep, file: Path) -> str:
    """Return whether one way to run a bundle is open here, and of a kit what it is for."""
    if step.step == "build here":
        command = f"`arvg-trt build --from {file}`"
        if step.opens:
            return f"{step.group}: opens here: {step.reason} (now: {command})"
        use = "a device with an NVIDIA GPU builds an engine of its own from it, there by"
        return f"{step.group}: {use} {command}; not here: {step.reason}"
    state = "opens here" if step.opens else "does not open here"
    return f"{step.group}: {step.step}, {state}: {step.reason}"


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
    if clear and not removed and entries:
        click.echo(f"nothing was removed: all was opened within {days:g} days, or is in use")
    for entry in entries:
        text = f"{entry.bytes / MB:8.1f} MB  {entry.days:5.1f} days  {entry.folder}"
        click.echo(f"{text}  ({entry.bundle})" if entry.bundle else text)
    if not entries and not removed:
        click.echo("nothing")


@command()
@click.argument("file", type=PathArgument())
@click.option("-o", "--output", type=PathArgument(), required=True, help="A new folder.")
@click.option("--group", help="One target group, as `verify` lists them. [default: all]")
@click.option("--signature", type=PathArgument(), help="File for the first signature.")
@click.option("--packed", is_flag=True, help="Leave packed weights packed, as they are signed.")
@require_key_option
@json_option
def unpack(
    file: Path,
    output: Path,
    group: str | None,
    signature: Path | None,
    packed: bool,
    keys: Sequence[Path],
    as_json: bool,
) -> None:
    """Unpack a bundle, or one of its groups, to a folder.

    A group is what one kind of device takes; `verify` lists them. Packed weights are expanded. FILE
    may be a folder that was left packed.

    \b
    Example: arvg-trt unpack demo.tar --group cpu -o engines/
    """
    from ..pipeline.ship import unpack_file

    with ConsoleReporter(quiet=as_json) as reporter:
        files = unpack_file(file, output, group, keys, signature, packed=packed, reporter=reporter)
    if as_json:
        print_json(
            {
                "written": [p for p in (output, signature) if p],
                "files": [file.path for file in files],
            }
        )
        return
    click.echo(f"{output}: {len(files)} files, {sum(f.bytes for f in files) / MB:.1f} MB")
