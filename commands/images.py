"""Commands that make images or tokens with what the stages left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .console import ConsoleReporter, print_json
from .support import Place, json_option, workspace_argument


@click.command()
@click.argument("folder", type=Place())
@click.argument("images", nargs=-1, required=True, type=Place())
@click.option("-o", "--output", type=Place(), required=True, help="A .npz file.")
@json_option
def encode(folder: Path, images: Sequence[Path], output: Path, as_json: bool) -> None:
    """Encode images with the graphs in FOLDER (an export, Q/DQ pair or engine) to tokens.

    \b
    Example: arvg-trt encode out/demo/engines/int8/onnxruntime photo.jpg -o photo.npz
    """
    from ..pipeline.codec import encode_files

    encode_files(folder, images, output)
    if as_json:
        print_json({"images": images, "written": [output]})
        return
    click.echo(str(output))


@click.command()
@click.argument("folder", type=Place())
@click.argument("tokens", type=Place())
@click.option("-o", "--output", type=Place(), required=True, help="A folder.")
@json_option
def decode(folder: Path, tokens: Path, output: Path, as_json: bool) -> None:
    """Decode a .npz of `encode` to PNG images.

    \b
    Example: arvg-trt decode out/demo/engines/int8/onnxruntime photo.npz -o pictures/
    """
    from ..pipeline.codec import decode_files

    paths = decode_files(folder, tokens, output)
    if as_json:
        print_json({"written": paths})
        return
    for path in paths:
        click.echo(str(path))


@click.command()
@workspace_argument
@click.option(
    "--labels", multiple=True, required=True, help="Classes, e.g. 207,360 or 0-9; repeatable."
)
@click.option("--count", type=click.IntRange(1, 10**6), help="Images of each label. [default: 1]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of the draws. [default: 0]")
@click.option("--cfg", type=float, help="Guidance strength, 0 for none. [default: the model's]")
@click.option("--top-k", type=int, help="0 for all. [default: the model's]")
@click.option("--top-p", type=float, help="Above 0, at most 1. [default: the model's]")
@click.option("--temperature", type=float, help="Above 0. [default: the model's]")
@click.option("--cfg-power", type=float, help="How late guidance sets in. [default: the model's]")
@click.option("--iterations", type=int, help="MAR: passes over an image. [default: the model's]")
@click.option("--diffusion-steps", type=int, help="MAR: of each token. [default: the model's]")
@click.option(
    "--greedy",
    is_flag=True,
    default=None,
    help="The arg-max instead of draws (MAR: no noise is added to a token on its way).",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images at once. [default: 4]")
@click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    help="Threads of ONNX Runtime, 0 for all. [default: 0]",
)
@click.option("-o", "--output", type=Place(), help="Folder for PNGs and grid.")
@click.option("--npz", type=Place(), help="All images for the ADM evaluator.")
@click.option("--tokens", type=Place(), help="A .npz with `tokens` (MAR: `latents`).")
@json_option
def generate(
    workspace: Path,
    output: Path | None,
    npz: Path | None,
    tokens: Path | None,
    as_json: bool,
    **changes: Any,
) -> None:
    """Generate images with the graphs in WORKSPACE (or an export folder).

    \b
    Example: arvg-trt generate out/ws --labels 207,360 --seed 0 -o out/pictures
    """
    from ..pipeline.generate import GenerateOptions, Outputs, generate_files

    options = GenerateOptions(**{k: v for k, v in changes.items() if v is not None})
    outputs = Outputs(folder=output, npz=npz, tokens=tokens)
    with ConsoleReporter(quiet=as_json) as reporter:
        result = generate_files(workspace, options, outputs, reporter)
    if as_json:
        print_json(result)
        return
    click.echo(f"{len(result.labels)} images, {result.seconds:.1f} s")
    for path in result.written:
        click.echo(str(path))
