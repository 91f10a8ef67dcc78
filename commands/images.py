"""Define the commands that make images or tokens from the outputs of stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..recipe.base import with_changes
from ..recipe.commands import GenerateOptions
from .support.console import ConsoleReporter, print_json
from .support.groups import command, option
from .support.options import (
    PathArgument,
    device_option,
    explain_option,
    fallback_option,
    json_option,
    require_key_option,
    struct_options,
    workspace_argument,
)

if TYPE_CHECKING:
    from ..runtime.bundle.choose import ChainStep, Choice
    from ..runtime.bundle.open import BundleAccess


class Opening:
    """Says how a bundle is checked, prints the reasons of the choice if asked, and keeps it."""

    def __init__(self, keys: Sequence[Path], explain: bool) -> None:
        self.keys, self.explain = tuple(keys), explain
        self.choice: Choice | None = None

    @property
    def access(self) -> BundleAccess:
        from ..runtime.bundle.open import BundleAccess

        return BundleAccess(keys=self.keys, explain=self.tell)

    def tell(self, choice: Choice) -> None:
        from ..runtime.bundle.choose import chain_text

        self.choice = choice
        if self.explain:
            for line in chain_text(choice):
                click.echo(line, err=True)

    @property
    def chosen(self) -> ChainStep | None:
        """Return what of a bundle ran, and why; None of a folder."""
        return None if self.choice is None else self.choice.chosen


@command()
@click.argument("folder", metavar="FOLDER|BUNDLE", type=PathArgument())
@click.argument("images", nargs=-1, required=True, type=PathArgument())
@click.option("-o", "--output", type=PathArgument(), required=True, help="A .npz file.")
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@device_option
@fallback_option
@require_key_option
@explain_option
@json_option
def encode(
    folder: Path,
    images: Sequence[Path],
    output: Path,
    force: bool,
    device: str,
    allow_fallback: bool,
    keys: Sequence[Path],
    explain: bool,
    as_json: bool,
) -> None:
    """Encode images to tokens.

    FOLDER holds the graphs of an image tokenizer: an export, Q/DQ graphs or an engine. Of a BUNDLE
    what runs on the device is chosen, and unpacked once.

    Images may have any size; those for an engine of TensorRT the one that it was built for, 256x256
    without `--image-size`. Others are refused: crop them, or give --device cpu.

    \b
    Example: arvg-trt encode out/demo/engines/int8/onnxruntime photo.jpg -o photo.npz
    """
    from ..pipeline.codec import encode_files

    opening = Opening(keys, explain)
    with ConsoleReporter(quiet=as_json) as reporter:
        encode_files(
            folder,
            images,
            output,
            reporter,
            device=device,
            allow_fallback=allow_fallback,
            access=opening.access,
            replace=force,
        )
    if as_json:
        print_json({"images": images, "written": [output], "chosen": opening.chosen})
        return
    click.echo(str(output))


@command()
@click.argument("folder", metavar="FOLDER|BUNDLE", type=PathArgument())
@click.argument("tokens", type=PathArgument())
@click.option("-o", "--output", type=PathArgument(), required=True, help="A folder.")
@click.option("--force", is_flag=True, help="Replace pictures that are there.")
@device_option
@fallback_option
@require_key_option
@explain_option
@json_option
def decode(
    folder: Path,
    tokens: Path,
    output: Path,
    force: bool,
    device: str,
    allow_fallback: bool,
    keys: Sequence[Path],
    explain: bool,
    as_json: bool,
) -> None:
    """Decode a .npz of `encode` to PNG images.

    A picture is called after the image that was encoded, else by its number.

    FOLDER holds the graphs of an image tokenizer, as for `encode`.

    \b
    Example: arvg-trt decode out/demo/engines/int8/onnxruntime photo.npz -o images/
    """
    from ..pipeline.codec import decode_files

    opening = Opening(keys, explain)
    with ConsoleReporter(quiet=as_json) as reporter:
        paths = decode_files(
            folder,
            tokens,
            output,
            reporter,
            device=device,
            allow_fallback=allow_fallback,
            access=opening.access,
            replace=force,
        )
    if as_json:
        print_json({"written": paths, "chosen": opening.chosen})
        return
    for path in paths:
        click.echo(str(path))


@command()
@workspace_argument
@struct_options(GenerateOptions)
@option("-o", "--output", group="Files", type=PathArgument(), help="Folder for PNGs and a grid.")
@option("--force", group="Files", is_flag=True, help="Replace files that are there.")
@option("--npz", group="Files", type=PathArgument(), help="All images for the ADM evaluator.")
@option(
    "--tokens", group="Files", type=PathArgument(), help="A .npz with `tokens` (MAR: `latents`)."
)
@require_key_option
@explain_option
@json_option
def generate(
    workspace: Path,
    output: Path | None,
    force: bool,
    npz: Path | None,
    tokens: Path | None,
    keys: Sequence[Path],
    explain: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Generate images from WORKSPACE, an engine or a bundle.

    Give a workspace (its export is taken), any folder of Q/DQ graphs or of an engine in it, or a
    bundle.

    \b
    Example: arvg-trt generate out/ws --labels 3,7 --seed 0 -o out/images
    """
    from ..pipeline.generate import generate_files
    from ..runtime.files import Outputs

    options = with_changes(GenerateOptions(), **changes)
    outputs = Outputs(folder=output, npz=npz, tokens=tokens)
    opening = Opening(keys, explain)
    with ConsoleReporter(quiet=as_json) as reporter:
        result = generate_files(
            workspace, options, outputs, reporter, opening.access, replace=force
        )
    if as_json:
        print_json({**msgspec.structs.asdict(result), "chosen": opening.chosen})
        return
    count = len(result.labels)
    click.echo(f"{count} image{'' if count == 1 else 's'}, {result.seconds:.1f} s")
    for path in result.written:
        click.echo(str(path))
