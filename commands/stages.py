"""Define the commands of the stages, from a checkpoint to a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..recipe.base import with_changes
from ..recipe.calibrate import CalibrateOptions
from ..recipe.quantize import QuantizeOptions, with_implied
from ..recipe.validate import ValidateOptions
from .support import completion
from .support.console import ConsoleReporter
from .support.figures import figures_of_failures, print_figures
from .support.groups import command, option
from .support.options import (
    PathArgument,
    json_option,
    memory_option,
    require_key_option,
    struct_options,
    workspace_argument,
)
from .support.perform import (
    name_option,
    perform,
    quantization_name,
    recipe_of_stage,
    recipe_option,
)
from .support.tracking import experiment_option, mlflow_option, tracking

if TYPE_CHECKING:
    from ..calibrate.executors import ExecutorName
    from ..export.checkpoint.wrappers import Weights
    from ..runtime.spec import KvType
    from ..workspace.stage import StageResult
    from ..workspace.workspace import Workspace


@command()
@click.argument("model", shell_complete=completion.models)
@workspace_argument
@option(
    "--checkpoint",
    group="Model",
    help="File, folder or Hugging Face id. [default: shipped weights]",
)
@option(
    "--weights",
    group="Model",
    type=click.Choice(["ema", "model"]),
    help="Averaged or last weights of a trainer's snapshot. [default: as officially evaluated]",
)
@option(
    "--graph",
    "graphs",
    group="Model",
    multiple=True,
    type=PathArgument(),
    help="An ONNX file of your own, with MODEL `onnx`. Repeatable.",
)
@option(
    "--title",
    group="Model",
    help="What graphs of your own are called in reports and bundles. [default: as their files]",
)
@option(
    "--static-batch",
    group="Shapes and types",
    type=click.IntRange(1),
    help="VAR: fixed shapes for so many images, a step graph per scale. [default: dynamic]",
)
@option(
    "--kv-type",
    group="Shapes and types",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Generators: the type of the KV caches.",
)
@click.option("--images", default="skimage", show_default=True, help="Images for the parity check.")
@click.option("--force", is_flag=True, help="Replace another model that later stages are of.")
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
    title: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Export MODEL to ONNX in WORKSPACE, compared with PyTorch.

    The graphs run in ONNX Runtime beside the model in PyTorch, or beside your own file, and have
    to agree.

    MODEL is one that `arvg-trt models` lists, or `onnx`: graphs of your own, each named after its
    file, whose sites are found from their operators. `var`, `rar`, `par`, `llamagen`, `mar`, `gsq`
    and `cosmos` take a checkpoint of any size; `var-vqvae`, `maskgit-vq`, `llamagen-vq` and `kl-16`
    the tokenizer of a generator alone.

    \b
    Example: arvg-trt export cosmos-mini-di8x8 out/ws
             arvg-trt export onnx out/mine --graph encoder.onnx --graph decoder.onnx
    """
    from ..export.shape import ExportShape
    from ..pipeline.export import export_any

    form = ExportShape(static_batch, kv_type)
    perform(
        workspace,
        as_json,
        lambda w, r: [
            export_any(w, model, checkpoint, images, graphs, r, form, weights, title, force=force)
        ],
    )


@command()
@workspace_argument
@click.argument("parts", nargs=-1, type=PathArgument())
@recipe_option
@struct_options(CalibrateOptions)
@option(
    "--executor",
    group="Shards",
    type=click.Choice(["processes", "ray"]),
    help="Make shards at once, and merge them.",
)
@option(
    "--workers",
    group="Shards",
    type=int,
    help="Shards of an executor. [default: one per processor]",
)
@option(
    "--merge",
    group="Shards",
    is_flag=True,
    help="Merge PARTS: workspaces or statistics files.",
)
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
    """Collect statistics of WORKSPACE's activations on samples.

    A tokenizer is fed --images, your own graphs --feeds; a generator makes its own images. With
    --merge the statistics are those of PARTS, which other processes or machines made of the same
    export.

    \b
    Example: arvg-trt calibrate out/ws --images photos/ --samples 64
             arvg-trt calibrate out/var --samples 64 --batch-size 8
             arvg-trt calibrate out/var --merge out/part1 out/part2
    """
    from ..calibrate.executors import Execution
    from ..pipeline.calibrate import calibrate_stage, merge_stage

    given = [name for name, value in changes.items() if value is not None]
    given += ["executor"] * bool(executor) + ["recipe"] * bool(recipe_name)
    if merge and given:
        raise click.UsageError(f"--merge takes no --{given[0].replace('_', '-')}: parts have it")
    if parts and not merge:
        one = f"one WORKSPACE is calibrated, not also {' '.join(map(str, parts))}"
        raise click.UsageError(f"{one}: --merge merges shards that are parts of it")
    if merge and not parts:
        raise click.UsageError("--merge takes the PARTS to merge behind the WORKSPACE")
    if workers is not None and executor is None:
        raise click.UsageError("--workers is an executor's: give --executor")
    if merge:
        perform(workspace, as_json, lambda w, r: [merge_stage(w, parts, r)])
        return
    recipe = recipe_of_stage(recipe_name, "calibrate", changes)
    base = recipe.calibrate if recipe else CalibrateOptions()
    options = with_changes(base, **changes)
    execution = Execution.choose(executor, workers) if executor else None
    perform(workspace, as_json, lambda w, r: [calibrate_stage(w, options, r, execution)])


@command()
@workspace_argument
@recipe_option
@name_option
@struct_options(QuantizeOptions)
@memory_option
@json_option
def quantize(
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    max_memory: int,
    as_json: bool,
    **changes: Any,
) -> None:
    """Write Q/DQ graphs, the plan and packed weights.

    \b
    Example: arvg-trt quantize out/ws --name log4 --encoder-bits 4 --decoder-bits 4 \\
                 --quantize-method log_quantization --activation-bits 32
    """
    from ..pipeline.quantize import quantize_stage

    recipe = recipe_of_stage(recipe_name, "quantize", changes)
    base = recipe.quantize if recipe else QuantizeOptions()
    options = with_changes(base, **with_implied(changes))
    called = quantization_name(name, recipe)
    perform(
        workspace,
        as_json,
        lambda w, r: [quantize_stage(w, called, options, r, max_memory)],
    )


@command()
@workspace_argument
@recipe_option
@name_option
@struct_options(ValidateOptions)
@mlflow_option
@experiment_option
@require_key_option
@json_option
def validate(
    workspace: Path,
    recipe_name: str | None,
    name: str | None,
    mlflow_uri: str | None,
    experiment: str,
    keys: Sequence[Path],
    as_json: bool,
    **changes: Any,
) -> None:
    """Compare a quantization with FP32 and write a report.

    A failed gate exits with 8. WORKSPACE may be a bundle packed --with-reference: it is unpacked
    beside itself.

    \b
    Example: arvg-trt validate out/ws --images held_out/ --gate 'psnr_drop<=0.5'
             arvg-trt validate out/var --name w8a8 --samples 50 --gate 'top1>=0.95'
    """
    from ..pipeline.validate import validate_stage

    recipe = recipe_of_stage(recipe_name, "validate", changes)
    base = recipe.validate if recipe else ValidateOptions()
    options = with_changes(base, **changes)
    if workspace.is_file():
        from ..extras import require_packages
        from ..pipeline.ship import bundled_workspace

        require_packages("report")  # before a folder is unpacked beside the bundle
        with ConsoleReporter(quiet=as_json) as reporter:
            workspace, called = bundled_workspace(workspace, name, keys, reporter)
    elif keys:
        raise click.UsageError("--require-key is for bundles, and WORKSPACE is none")
    else:
        called = quantization_name(name, recipe)

    def work(opened: Workspace, reporter: ConsoleReporter) -> list[StageResult]:
        found = [validate_stage(opened, called, options, reporter)]
        log(found)
        return found

    with figures_of_failures(as_json), tracking(mlflow_uri, experiment) as log:
        results = perform(workspace, as_json, work)
    if not as_json:
        print_figures(results[-1:])
