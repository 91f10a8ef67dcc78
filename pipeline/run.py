"""All stages of a recipe; those whose inputs did not change are skipped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArvgError, BuildError, RecipeError
from ..extras import require_packages
from ..families.custom.export import graph_names
from ..families.variants import find_model
from ..quantize.facts import read_plan
from ..recipe.build import BuildOptions
from ..recipe.file import encode_recipe, without_folders
from ..recipe.quantize import MAX_MEMORY, QuantizeOptions
from ..recipe.recipe import Recipe
from ..runtime.families import find_family
from ..runtime.labels import parse_labels
from ..samples.sources import check_options
from ..workspace.facts import FP16
from ..workspace.files import atomic_write
from ..workspace.stage import Reporter, StageResult
from ..workspace.workspace import RECIPE_FILE, Workspace
from .build import build_stage
from .calibrate import calibrate_stage
from .export import PARITY_PICTURES, export_any, refuse_other_model, require_no_title
from .quantize import quantize_stage
from .validate import validate_stage

if TYPE_CHECKING:
    from ..engines.tensorrt.targets import Format


def check_recipe(recipe: Recipe) -> None:
    """Check everything that a later stage would refuse and that needs no earlier one.

    Raises:
        ArvgError: gates, image sources, labels, formats or targets that cannot be used.
    """
    from ..validate.measure.kinds import check_validation
    from ..validate.metric_names import parse_gates_of

    entry = find_model(recipe.model)
    family = find_family(entry.family)
    parse_gates_of(family.kind, recipe.validate.gates)
    check_name_and_attention(recipe, family.generates)
    if recipe.quantize.plan is not None:
        read_plan(Path(recipe.quantize.plan))
    if family.source == "graphs":
        graph_names([Path(graph) for graph in recipe.graphs])
    else:
        require_no_title(recipe.model, recipe.title)
        check_options(family.kind, recipe.calibrate)
        check_validation(family.kind, recipe.validate)
        classes = getattr(entry.config, "num_classes", None)
        for labels in (recipe.calibrate.labels, recipe.validate.labels):
            if labels is not None and classes is not None:
                parse_labels([labels], classes)
    for options in recipe.build:
        check_build(recipe.quantize, options, family.generates)


def check_name_and_attention(recipe: Recipe, generates: bool) -> None:
    """Raise RecipeError for a name that is taken, or formats that only a generator gets."""
    if recipe.name == FP16:
        raise RecipeError(
            f"{FP16} names the engines of the unquantized graphs", do="choose another name"
        )
    if not generates and recipe.quantize.attention != "float":
        raise RecipeError(
            "only a generator's attention is quantized", where="attention", do='leave it "float"'
        )


def check_build(quantize: QuantizeOptions, options: BuildOptions, generates: bool) -> None:
    """Check what needs no plan: the targets and their formats, the builder, and a GPU.

    Raises:
        BuildError: what the build would raise of them.
    """
    from ..engines.cpu import cpu_title
    from ..engines.tensorrt.engine import named_targets
    from ..engines.tensorrt.targets import check_formats, require_local_gpu
    from ..runtime.trt_compat import load_builder

    method = quantize.quantize_method if quantize.plan is None else None  # a plan has its own
    fp8 = method == "fp8" or (
        method and quantize.integer_exponents and quantize.activation_bits == 8
    )
    if options.on_cpu:
        if fp8 and "*" not in quantize.exclude:
            raise BuildError(
                f"the recipe wants fp8, which {cpu_title(options.backend)} lacks on the CPU; "
                "nearest that works: int8",
                do='choose another quantize_method, or the backend "tensorrt_rtx"',
            )
        return
    assert options.backend == "tensorrt" or options.backend == "tensorrt_rtx"
    targets = named_targets(options.backend, options)
    if options.backend == "tensorrt":
        require_local_gpu(targets)
    load_builder(options.backend)
    wanted: dict[str, Format] = {"the recipe": "fp8"} if fp8 else {}
    if method == "blockwise" and generates:  # whose linears all have blocks
        wanted["the recipe"] = "int4"
    if options.half == "bfloat16":
        wanted["what is not quantized"] = "bf16"
    check_formats(wanted, targets)


def run_recipe(
    recipe: Recipe, reporter: Reporter, max_memory: int = MAX_MEMORY
) -> list[StageResult]:
    """Export, calibrate, quantize, build for every backend, validate.

    Second moments take at most `max_memory` bytes at a time. An error has the results of
    the stages that had ended.
    """
    require_extras(recipe)
    check_recipe(recipe)
    results: list[StageResult] = []
    try:
        run_stages(recipe, reporter, max_memory, results)
    except ArvgError as error:
        error.stages = (*results, *(error.stages or ()))
        raise
    return results


def require_extras(recipe: Recipe) -> None:
    """Raise ArvgError that names every package which a stage of the recipe would miss."""
    backends = {build.backend for build in recipe.build}
    brought = {"tensorrt_rtx": "rtx", "openvino": "openvino"}
    extras = [extra for backend, extra in brought.items() if backend in backends]
    require_packages("export", "report", *extras)


def run_stages(
    recipe: Recipe, reporter: Reporter, max_memory: int, results: list[StageResult]
) -> None:
    """Run the stages in turn; `results` gets each as it ends."""

    def finish(stage: str, result: StageResult) -> None:
        results.append(result)
        took = "up to date" if result.skipped else f"{result.seconds:.1f} s"
        reporter.say(f"{stage:<10} {took:>10}  {result.folder}")

    with Workspace(Path(recipe.workspace)) as workspace:
        graphs = [Path(graph) for graph in recipe.graphs]
        refuse_other_model(workspace, recipe.model, graphs)
        atomic_write(workspace.root / RECIPE_FILE, encode_recipe(without_folders(recipe)).encode())
        finish(
            "export",
            export_any(
                workspace,
                recipe.model,
                recipe.checkpoint,
                PARITY_PICTURES,
                graphs,
                reporter,
                weights=recipe.weights,
                title=recipe.title,
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
