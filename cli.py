"""The command line: one function a command, parsing and printing only. Here are the stages."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from .artifacts import Workspace
from .cli_images import decode, encode, generate
from .cli_info import compare, doctor, inspect, models
from .cli_support import Bytes, Commands, Exponent, json_option, workspace_argument
from .console import ConsoleReporter, print_json
from .errors import RecipeError
from .pipeline.common import StageResult, tool_version
from .recipe import (
    MAX_MEMORY,
    BuildOptions,
    CalibrateOptions,
    QuantizeMethod,
    QuantizeOptions,
    Recipe,
    ValidateOptions,
    check_name,
    load_recipe,
    with_changes,
)
from .sites import Rounding

if TYPE_CHECKING:
    from .pipeline.executors import ExecutorName
    from .runtime.generate.spec import KvType


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(tool_version(), prog_name="arvg-trt")
def cli() -> None:
    """Image generators and tokenizers, from checkpoints to quantized engines for NVIDIA edge GPUs.

    \b
    arvg-trt run cosmos-mini-int8            everything, from a recipe
    arvg-trt export cosmos-di8x8 ws --checkpoint nvidia/Cosmos-0.1-Tokenizer-DI8x8
    arvg-trt generate ws --labels 207 -o out/ images, with an exported generator
    """


recipe_option = click.option(
    "--recipe", "recipe_name", metavar="NAME|FILE", help="A preset or a TOML file."
)
name_option = click.option(
    "--name", default=None, help="Name of the quantization. [default: the recipe's, or int8]"
)


def recipe_or_none(name: str | None) -> Recipe | None:
    return None if name is None else load_recipe(name)


def chosen_name(name: str | None, recipe: Recipe | None) -> str:
    if name is None:
        return recipe.name if recipe else "int8"
    try:
        check_name(name)
    except ValueError as error:
        raise RecipeError(str(error), where="--name") from error
    return name


def chosen_builds(recipe: Recipe | None, changes: dict[str, Any]) -> list[BuildOptions]:
    """The recipe's builds, or the one that the command line asks for."""
    backend = changes["backend"]
    given = [name for name, value in changes.items() if value is not None]
    if recipe is None:
        return [with_changes(BuildOptions(), **changes)]
    if backend is None:
        if given:
            option = given[0].replace("_", "-").replace("targets", "target")
            raise RecipeError(f"--{option} beside a recipe needs --backend", do="add --backend")
        return list(recipe.build)
    base = next((b for b in recipe.build if b.backend == backend), BuildOptions())
    return [with_changes(base, **changes)]


def perform(
    workspace: Path,
    as_json: bool,
    work: Callable[[Workspace, ConsoleReporter], Sequence[StageResult]],
) -> None:
    """Run stages under the workspace's lock and print what they made."""
    with ConsoleReporter(quiet=as_json) as reporter, Workspace(workspace) as opened:
        results = work(opened, reporter)
    if as_json:
        print_json({"stages": results})
        return
    for result in results:
        took = "up to date" if result.skipped else f"{result.seconds:.1f} s"
        click.echo(f"{result.manifest.stage}: {took}, {result.folder}")


@cli.command()
@click.argument("model")
@workspace_argument
@click.option("--checkpoint", help="File, folder or Hugging Face id. [default: shipped weights]")
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
    type=click.Path(path_type=Path),
    help="An ONNX file of your own, with MODEL `onnx`; repeatable.",
)
@json_option
def export(
    model: str,
    workspace: Path,
    checkpoint: str | None,
    images: str,
    static_batch: int | None,
    kv_type: KvType,
    graphs: Sequence[Path],
    as_json: bool,
) -> None:
    """Export MODEL to ONNX graphs in WORKSPACE and check them against PyTorch.

    MODEL is one that `arvg-trt models` lists, `var`, `rar`, `par`, `mar` or `gsq`: one of any size,
    or `onnx`: graphs of your own, each named after its file, whose sites are found from their
    operators.

    \b
    Example: arvg-trt export cosmos-mini-di8x8 out/ws
             arvg-trt export onnx out/mine --graph encoder.onnx --graph decoder.onnx
    """
    from .export.graph_form import GraphForm
    from .pipeline.export import export_any

    form = GraphForm(static_batch, kv_type)
    perform(
        workspace,
        as_json,
        lambda w, r: [export_any(w, model, checkpoint, images, graphs, r, form)],
    )


@cli.command()
@workspace_argument
@click.argument("parts", nargs=-1, type=click.Path(path_type=Path))
@recipe_option
@click.option("--images", help="Folder of images, or skimage:NAME,NAME.")
@click.option("--feeds", help="A .npz of arrays by input name, for graphs of your own.")
@click.option(
    "--value-range",
    type=(float, float),
    help="What float pictures of --feeds lie in. [default: +-16]",
)
@click.option("--labels", help="A generator's classes, e.g. 0-9,207. [default: all in turn]")
@click.option("--samples", type=int, help="Number of crops, or pictures. [default: 32]")
@click.option("--batch-size", type=int, help="Samples in flight. [default: 1]")
@click.option("--seed", type=int, help="Seed of the crops, or pictures. [default: 0]")
@click.option("--size", type=int, help="Side of the square crops. [default: 256]")
@click.option(
    "--synthetic", is_flag=True, default=None, help="Calibrate on noise; marks the report."
)
@click.option("--samples-from", help="Samples that were saved: a workspace or folder.")
@click.option(
    "--dgc/--no-dgc", default=None, help="Choose a generator's rows by distance. [default: no]"
)
@click.option("--candidates", type=int, help="Pictures that DGC chooses from. [default: twice]")
@click.option(
    "--dgc-select",
    type=click.Choice(["ratio", "distance"]),
    help="Keep the first rows in the far ones' ratio, or the far ones. [default: ratio]",
)
@click.option("--shard", metavar="K/N", help="Part K of N of the samples, to be merged.")
@click.option(
    "--executor", type=click.Choice(["processes", "ray"]), help="Make shards at once, and merge."
)
@click.option("--workers", type=int, help="Shards of an executor. [default: one a processor]")
@click.option("--merge", is_flag=True, help="Make one of PARTS: workspaces or statistics files.")
@json_option
def calibrate(
    workspace: Path,
    parts: Sequence[Path],
    recipe_name: str | None,
    executor: ExecutorName | None,
    workers: int | None,
    merge: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Collect activation statistics of WORKSPACE's graphs on images.

    A generator's are collected on pictures that it makes itself. With --merge they are those of
    PARTS, that other processes or machines made of the same export.

    \b
    Example: arvg-trt calibrate out/ws --images photos/ --samples 64
             arvg-trt calibrate out/var --samples 64 --batch-size 8
             arvg-trt calibrate out/var --merge out/part1 out/part2
    """
    from .pipeline.calibrate import calibrate_stage
    from .pipeline.executors import Execution
    from .pipeline.merging import merge_stage

    given = [name for name, value in changes.items() if value is not None]
    given += ["executor"] * bool(executor) + ["recipe"] * bool(recipe_name)
    if merge and given:
        raise click.UsageError(f"--merge takes no --{given[0].replace('_', '-')}: parts have it")
    if merge != bool(parts):
        raise click.UsageError("--merge and PARTS go together")
    if workers is not None and executor is None:
        raise click.UsageError("--workers is an executor's: give --executor")
    if merge:
        perform(workspace, as_json, lambda w, r: [merge_stage(w, parts, r)])
        return
    recipe = recipe_or_none(recipe_name)
    base = recipe.calibrate if recipe else CalibrateOptions()
    options = with_changes(base, **changes)
    execution = Execution.choose(executor, workers) if executor else None
    perform(workspace, as_json, lambda w, r: [calibrate_stage(w, options, r, execution)])


@cli.command()
@workspace_argument
@recipe_option
@name_option
@click.option("--encoder-bits", type=int, help="2 to 8, or 32 for high precision.")
@click.option("--decoder-bits", type=int, help="2 to 8, or 32 for high precision.")
@click.option("--weight-bits", type=int, help="Of every graph: 2 to 8, or 32. [default: 8]")
@click.option("--activation-bits", type=int, help="2 to 8, or 32 for weight-only.")
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
    help='SmoothQuant exponent, 0 for none, or "search". [default: search]',
)
@click.option("--rounding", type=click.Choice(get_args(Rounding)), help="Of weights.")
@click.option(
    "--bias-correction/--no-bias-correction", default=None, help="Keep the outputs' means."
)
@click.option(
    "--max-memory", type=Bytes(), default=MAX_MEMORY, help="Of second moments. [default: 2GiB]"
)
@click.option(
    "--attention",
    type=click.Choice(["float", "fp8", "int8"]),
    help="Of a generator's attention products. [default: float]",
)
@click.option("--exclude", multiple=True, default=None, help="Pattern of site names; repeatable.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="An edited plan.json.")
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
    changes["exclude"] = changes["exclude"] or None
    options = with_changes(base, **changes)
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
    perform(workspace, as_json, lambda w, r: [validate_stage(w, called, options, r)])


@cli.command()
@click.argument("recipe_name", metavar="RECIPE")
@click.option("--workspace", help="Instead of the recipe's.")
@json_option
def run(recipe_name: str, workspace: str | None, as_json: bool) -> None:
    """Run every stage of RECIPE, skipping what is up to date.

    \b
    Example: arvg-trt run recipes/cosmos-mini-int8.toml
    """
    from .pipeline.run import run_recipe

    recipe = with_changes(load_recipe(recipe_name), workspace=workspace)
    with ConsoleReporter(quiet=as_json) as reporter:
        results = run_recipe(recipe, reporter)
    if as_json:
        print_json({"stages": results})
        return
    click.echo(summary(results[-1].manifest.results["metrics"]))
    click.echo(str(results[-1].folder / "report.html"))


def summary(metrics: dict[str, float]) -> str:
    """The main figures in a line."""
    parts = [
        f"PSNR drop {metrics['psnr_drop']:.2f} dB" if "psnr_drop" in metrics else "",
        f"SQNR {metrics['output_sqnr_db']:.1f} dB" if "output_sqnr_db" in metrics else "",
        f"likeliest token equal {metrics['top1']:.1%}" if "top1" in metrics else "",
        f"tokens equal {metrics['token_agreement']:.1%}" if "token_agreement" in metrics else "",
        f"weights {metrics['compression']:.2f}x smaller",
        f"{metrics['speedup']:.2f}x faster than FP32" if "speedup" in metrics else "",
    ]
    return ", ".join(part for part in parts if part)


for command in (models, compare, inspect, doctor, encode, decode, generate):
    cli.add_command(command)


def main() -> None:
    signal.signal(signal.SIGINT, cli.interrupt)
    cli(prog_name="arvg-trt")
