"""The command line: one function a command, parsing and printing only. Here are the stages."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from .commands.analyze import analyze
from .commands.calibrate import calibrate
from .commands.console import ConsoleReporter, print_json
from .commands.images import decode, encode, generate
from .commands.info import compare, doctor, inspect, models
from .commands.search import search
from .commands.stage import (
    chosen_builds,
    chosen_name,
    name_option,
    perform,
    recipe_option,
    recipe_or_none,
)
from .commands.support import (
    Commands,
    Exponent,
    Place,
    debug_option,
    json_option,
    memory_option,
    workspace_argument,
)
from .errors import AccuracyError
from .numerics.scheme import Rounding
from .recipe.file import load_recipe
from .recipe.options import (
    QuantizeMethod,
    QuantizeOptions,
    ValidateOptions,
    with_changes,
    with_implied,
)
from .workspace.stage import StageResult, tool_version

if TYPE_CHECKING:
    from .export.checkpoint.read import Weights
    from .runtime.spec import KvType


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[debug_option()],
)
@click.version_option(tool_version(), prog_name="arvg-trt")
def cli() -> None:
    """Image generators and tokenizers, from checkpoints to quantized engines for NVIDIA edge GPUs.

    \b
    arvg-trt run cosmos-mini-int8            everything, from a recipe
    arvg-trt export cosmos-di8x8 ws --checkpoint nvidia/Cosmos-0.1-Tokenizer-DI8x8
    arvg-trt generate ws --labels 207 -o out/ images, with an exported generator
    """


@cli.command()
@click.argument("model")
@workspace_argument
@click.option("--checkpoint", help="File, folder or Hugging Face id. [default: shipped weights]")
@click.option(
    "--weights",
    type=click.Choice(["ema", "model"]),
    help="Of a trainer's snapshot: averaged or last ones. [default: as officially evaluated]",
)
@click.option("--images", default="skimage", show_default=True, help="Images for the parity check.")
@click.option(
    "--static-batch",
    type=click.IntRange(1),
    help="VAR: fixed shapes for so many images, a step graph a scale. [default: dynamic]",
)
@click.option(
    "--kv-type",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Generators: the type of the KV caches.",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=Place(),
    help="An ONNX file of your own, with MODEL `onnx`; repeatable.",
)
@json_option
def export(
    model: str,
    workspace: Path,
    checkpoint: str | None,
    weights: Weights | None,
    images: str,
    static_batch: int | None,
    kv_type: KvType,
    graphs: Sequence[Path],
    as_json: bool,
) -> None:
    """Export MODEL to ONNX graphs in WORKSPACE and check them against PyTorch.

    MODEL is one that `arvg-trt models` lists, `var`, `rar`, `par`, `mar`, `gsq` or `cosmos`: one of
    any size, or `onnx`: graphs of your own, each named after its file, whose sites are found from
    their operators.

    \b
    Example: arvg-trt export cosmos-mini-di8x8 out/ws
             arvg-trt export onnx out/mine --graph encoder.onnx --graph decoder.onnx
    """
    from .export.shape import GraphForm
    from .pipeline.export import export_any

    form = GraphForm(static_batch, kv_type)
    perform(
        workspace,
        as_json,
        lambda w, r: [export_any(w, model, checkpoint, images, graphs, r, form, weights)],
    )


@cli.command()
@workspace_argument
@recipe_option
@name_option
@click.option("--encoder-bits", type=int, help="2 to 8, or 32 for high precision.")
@click.option("--decoder-bits", type=int, help="2 to 8, or 32 for high precision.")
@click.option("--weight-bits", type=int, help="Of every graph: 2 to 8, or 32. [default: 8]")
@click.option(
    "--activation-bits",
    type=int,
    help="2 to 8, or 32 for weight-only. [default: 8; 32 where the method is weight-only]",
)
@click.option(
    "--adaln-bits", type=int, help="Of what makes a generator's modulation, weight-only; or 32."
)
@click.option(
    "--quantize-method",
    type=click.Choice(get_args(QuantizeMethod)),
)
@click.option("--block-size", type=int, help="Of blockwise: 32, 64 or 128. [default: 64]")
@click.option(
    "--integer-exponents", is_flag=True, default=None, help="Powers of two, which FP8 has."
)
@click.option(
    "--smoothing",
    type=Exponent(),
    help='SmoothQuant exponent, 0 for none, "gps" or "search". [default: search]',
)
@click.option("--rounding", type=click.Choice(get_args(Rounding)), help="Of weights.")
@click.option(
    "--bias-correction/--no-bias-correction", default=None, help="Keep the outputs' means."
)
@memory_option
@click.option(
    "--attention",
    type=click.Choice(["float", "fp8", "int8"]),
    help="Of a generator's attention products. [default: float]",
)
@click.option("--attention-bits", type=int, help="Beside int8: 2 to 8. [default: 8]")
@click.option(
    "--per-tensor", multiple=True, default=None, help="Of sites with one scale; repeatable."
)
@click.option("--exclude", multiple=True, default=None, help="Pattern of site names; repeatable.")
@click.option("--include", multiple=True, default=None, help="Of sites that the method leaves out.")
@click.option("--plan", "plan_file", type=Place(), help="An edited plan.json.")
@json_option
def quantize(
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    plan_file: Path | None,
    max_memory: int,
    as_json: bool,
    **changes: Any,
) -> None:
    """Write Q/DQ graphs, the plan and packed weights.

    \b
    Example: arvg-trt quantize out/ws --name log4 --encoder-bits 4 --decoder-bits 4 \\
                 --quantize-method log_quantization --activation-bits 32
    """
    from .pipeline.quantize import quantize_stage

    recipe = recipe_or_none(recipe_name)
    base = recipe.quantize if recipe else QuantizeOptions()
    changes |= {name: changes[name] or None for name in ("exclude", "include", "per_tensor")}
    options = with_changes(base, **with_implied(changes))
    called = chosen_name(name, recipe)
    perform(
        workspace,
        as_json,
        lambda w, r: [quantize_stage(w, called, options, r, plan_file, max_memory)],
    )


@cli.command()
@workspace_argument
@recipe_option
@name_option
@click.option("--backend", type=click.Choice(["onnxruntime", "tensorrt_rtx", "tensorrt"]))
@click.option("--target", "targets", multiple=True, help="GPU or compute capability; repeatable.")
@click.option("--fp16", is_flag=True, default=None, help="Also build the unquantized FP16 engines.")
@click.option(
    "--half",
    type=click.Choice(["float16", "bfloat16"]),
    help="What TensorRT does not quantize. [default: float16]",
)
@click.option("--image-size", type=int, help="Side of the images a TensorRT engine takes.")
@click.option("--max-batch", type=int, help="Largest batch a TensorRT engine takes.")
@json_option
def build(
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    as_json: bool,
    targets: Sequence[str],
    **changes: Any,
) -> None:
    """Build engines for a backend and its targets.

    \b
    Example: arvg-trt build out/ws --backend tensorrt_rtx --target rtx3090 --target rtx4090
    """
    from .pipeline.build import build_stage

    recipe = recipe_or_none(recipe_name)
    called = chosen_name(name, recipe)
    chosen = chosen_builds(recipe, {**changes, "targets": list(targets) or None})
    perform(
        workspace,
        as_json,
        lambda w, r: [
            result for options in chosen for result in build_stage(w, called, options, r)
        ],
    )


@cli.command()
@workspace_argument
@recipe_option
@name_option
@click.option("--images", help="Folder of held-out images, or skimage:NAME,NAME.")
@click.option("--feeds", help="A .npz of held-out arrays, for graphs of your own.")
@click.option("--labels", help="A generator's classes, e.g. 0-9,207; with --images one for each.")
@click.option("--samples", type=int, help="Pictures that a generator makes. [default: 32]")
@click.option("--seed", type=int, help="Seed of these pictures. [default: 1000]")
@click.option("--batch-size", type=int, help="Pictures in flight. [default: 4]")
@click.option("--features", help="An ONNX graph from pictures to features, for their distance.")
@click.option("--size", type=int, help="Side of the centre crops. [default: 256]")
@click.option("--gate", "gates", multiple=True, help="e.g. 'psnr_drop<=0.5'; repeatable.")
@click.option("--rounds", type=int, help="Timed rounds, 0 for none. [default: 20]")
@click.option("--threads", type=int, help="Threads of ONNX Runtime, 0 for all. [default: 0]")
@click.option(
    "--skip-engine", is_flag=True, default=None, help="Measure the Q/DQ graphs, and no engine."
)
@json_option
def validate(
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    as_json: bool,
    gates: Sequence[str],
    **changes: Any,
) -> None:
    """Compare a quantization with FP32 and write a report; a failed gate exits with 8.

    \b
    Example: arvg-trt validate out/ws --images held_out/ --gate 'psnr_drop<=0.5'
             arvg-trt validate out/var --name w8a8 --samples 50 --gate 'top1>=0.95'
    """
    from .pipeline.validate import validate_stage

    recipe = recipe_or_none(recipe_name)
    base = recipe.validate if recipe else ValidateOptions()
    options = with_changes(base, gates=list(gates) or None, **changes)
    called = chosen_name(name, recipe)
    with figures_of_failures(as_json):
        results = perform(workspace, as_json, lambda w, r: [validate_stage(w, called, options, r)])
    if not as_json:
        print_figures(results[-1])


@cli.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--workspace", help="Instead of the recipe's.")
@memory_option
@json_option
def run(recipe_name: str, workspace: str | None, max_memory: int, as_json: bool) -> None:
    """Run every stage of RECIPE, skipping what is up to date.

    \b
    Example: arvg-trt run recipes/cosmos-mini-int8.toml
    """
    from .pipeline.run import run_recipe

    recipe = with_changes(load_recipe(recipe_name), workspace=workspace)
    with figures_of_failures(as_json), ConsoleReporter(quiet=as_json) as reporter:
        results = run_recipe(recipe, reporter, max_memory)
    if as_json:
        print_json({"stages": results})
        return
    print_figures(results[-1])


def print_figures(validated: StageResult) -> None:
    """The main figures of a validation, and where its report is."""
    metrics = validated.manifest.results["metrics"]
    click.echo(summary(metrics))
    click.echo(packed_line(metrics))
    click.echo(str(validated.folder / "report.html"))


@contextlib.contextmanager
def figures_of_failures(as_json: bool) -> Iterator[None]:
    """Print the figures of a validation whose gates failed as well."""
    try:
        yield
    except AccuracyError as error:
        if not as_json and "stages" in error.made:
            print_figures(error.made["stages"][-1])
        raise


def summary(metrics: dict[str, float]) -> str:
    """The main figures in a line."""
    parts = [
        f"PSNR drop {metrics['psnr_drop']:.2f} dB" if "psnr_drop" in metrics else "",
        f"SQNR {metrics['output_sqnr_db']:.1f} dB" if "output_sqnr_db" in metrics else "",
        f"likeliest token equal {metrics['top1']:.1%}" if "top1" in metrics else "",
        f"tokens equal {metrics['token_agreement']:.1%}" if "token_agreement" in metrics else "",
        f"noise SQNR {metrics['noise_sqnr_db']:.1f} dB" if "noise_sqnr_db" in metrics else "",
        f"{metrics['compression']:.2f}x smaller on disk",
        f"{metrics['speedup']:.2f}x faster than FP32" if "speedup" in metrics else "",
    ]
    return ", ".join(part for part in parts if part)


def packed_line(metrics: dict[str, float]) -> str:
    return (
        f"packed weights {metrics['packed_compression']:.2f}x smaller "
        "(weights.safetensors, which no command loads)"
    )


for command in (
    analyze,
    calibrate,
    models,
    compare,
    inspect,
    doctor,
    encode,
    decode,
    generate,
    search,
):
    cli.add_command(command)


def main() -> None:
    """Run a command; an error that nobody foresaw ends as one line here, at the outermost edge."""
    signal.signal(signal.SIGINT, cli.interrupt)
    try:
        cli(prog_name="arvg-trt")
    except Exception as error:
        sys.exit(cli.report_internal(error))
