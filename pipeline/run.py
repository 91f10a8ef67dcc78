"""All stages of a recipe; those whose inputs did not change are skipped."""

from __future__ import annotations

from pathlib import Path

from ..errors import ArvgError
from ..families.custom.export import graph_names
from ..families.variants import find_model
from ..packages import require_packages
from ..recipe.file import encode_recipe, without_folders
from ..recipe.quantize import MAX_MEMORY
from ..recipe.recipe import Recipe
from ..runtime.families import find_family
from ..samples.sources import check_options
from ..workspace.facts import ModelKind
from ..workspace.files import atomic_write
from ..workspace.stage import Reporter, StageResult
from ..workspace.workspace import RECIPE_FILE, Workspace
from .build import build_stage
from .calibrate import calibrate_stage
from .export import export_any
from .quantize import quantize_stage
from .validate import validate_stage

# An export compares its graphs on pictures of its own: others to validate on change no export.
PARITY_PICTURES = "skimage"


def check_recipe(recipe: Recipe) -> None:
    """Check everything that a later stage would refuse and that needs no earlier one.

    Raises:
        ArvgError: gates, image sources or targets that cannot be used.
    """
    from ..engines.tensorrt.targets import resolve_target
    from ..runtime.trt_compat import load_builder
    from ..validate.measure.kinds import check_validation
    from ..validate.report.gates import parse_gates
    from ..validate.report.schema import METRIC_NAMES

    parse_gates(recipe.validate.gates, METRIC_NAMES)
    family = find_family(find_model(recipe.model).family)
    if family.source == "graphs":
        graph_names([Path(graph) for graph in recipe.graphs])
    else:
        kind: ModelKind = "generator" if family.generates else "tokenizer"
        check_options(kind, recipe.calibrate)
        check_validation(kind, recipe.validate)
    for options in recipe.build:
        if options.backend != "onnxruntime":
            for target in options.targets:
                resolve_target(target, options.backend)
            load_builder(options.backend)


def run_recipe(
    recipe: Recipe, reporter: Reporter, max_memory: int = MAX_MEMORY
) -> list[StageResult]:
    """Export, calibrate, quantize, build for every backend, validate.

    Second moments take at most `max_memory` bytes at a time. An error has the results of
    the stages that had ended.
    """
    require_packages("export", "report", *builders(recipe))
    check_recipe(recipe)
    results: list[StageResult] = []
    try:
        run_stages(recipe, reporter, max_memory, results)
    except ArvgError as error:
        error.stages = (*results, *(error.stages or ()))
        raise
    return results


def builders(recipe: Recipe) -> list[str]:
    """Return the extras of the recipe's builders, where a package index has them."""
    return ["rtx"] if any(b.backend == "tensorrt_rtx" for b in recipe.build) else []


def run_stages(
    recipe: Recipe, reporter: Reporter, max_memory: int, results: list[StageResult]
) -> None:
    """Run the stages in turn; `results` gets each as it ends."""

    def finish(stage: str, result: StageResult) -> None:
        results.append(result)
        took = "up to date" if result.skipped else f"{result.seconds:.1f} s"
        reporter.say(f"{stage:<10} {took:>10}  {result.folder}")

    with Workspace(Path(recipe.workspace)) as workspace:
        atomic_write(workspace.root / RECIPE_FILE, encode_recipe(without_folders(recipe)).encode())
        finish(
            "export",
            export_any(
                workspace,
                recipe.model,
                recipe.checkpoint,
                PARITY_PICTURES,
                [Path(graph) for graph in recipe.graphs],
                reporter,
                weights=recipe.weights,
            ),
        )
        finish("calibrate", calibrate_stage(workspace, recipe.calibrate, reporter))
        quantized = quantize_stage(
            workspace, recipe.name, recipe.quantize, reporter, max_memory=max_memory
        )
        finish("quantize", quantized)
        for options in recipe.build:
            for result in build_stage(workspace, recipe.name, options, reporter):
                finish("build", result)
        finish("validate", validate_stage(workspace, recipe.name, recipe.validate, reporter))
