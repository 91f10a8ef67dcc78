"""Define the commands that choose among quantizations: `sweep` and `recommend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ..errors import AccuracyError, InconclusiveError
from .recipes import model_options
from .support import completion
from .support.console import ConsoleReporter, print_json
from .support.groups import command
from .support.options import PathArgument, json_option, memory_option

if TYPE_CHECKING:
    from ..validate.choice.recommend import Considered, Recommendation

quality_option = click.option(
    "--quality", help="The metric to choose by. [default: the main one of the kind of model]"
)


@command()
@click.argument("recipe_names", metavar="RECIPES...", nargs=-1, required=True)
@model_options
@click.option(
    "-o",
    "--output",
    type=PathArgument(),
    metavar="FILE",
    help="The page. [default: sweep.html in the workspace]",
)
@quality_option
@memory_option
@json_option
def sweep(
    recipe_names: Sequence[str],
    model: str | None,
    checkpoint: str | None,
    workspace: str | None,
    output: Path | None,
    quality: str | None,
    max_memory: int,
    as_json: bool,
) -> None:
    """Run several RECIPES of one model and compare them.

    A page says what each loses, takes and costs. They share a workspace, that of the first unless
    --workspace says another, so that export and calibration run once. All follow the first recipe's
    calibration and validation. The page has the Pareto front: what no other recipe beats in
    quality, size and time at once.

    \b
    Example: arvg-trt sweep var-w8a8 var-w6a6 var-w4a16
    """
    from ..explain.recipes import adapt_recipe, require_weights
    from ..pipeline.sweep import aligned, run_sweep
    from ..recipe.file import load_recipe
    from ..recipe.paths import require_paths
    from ..validate.choice.candidates import read_candidates
    from ..validate.choice.front import pareto_front
    from ..validate.choice.page import PAGE, busy_lines, candidate_line, sweep_page
    from ..validate.report.page import to_html
    from ..validate.report.schema import REPORT_FILE
    from ..workspace.files import atomic_write

    recipes = aligned(
        [adapt_recipe(n, load_recipe(n), model, checkpoint, workspace) for n in recipe_names]
    )
    require_weights(recipe_names[0], recipes[0])
    for name, recipe in zip(recipe_names, recipes, strict=True):
        require_paths(recipe, name)
    with ConsoleReporter(quiet=as_json) as reporter:
        folders = run_sweep(recipes, reporter, max_memory)
    found = read_candidates([folder / REPORT_FILE for folder in folders], quality)
    page = output or Path(recipes[0].workspace) / PAGE
    atomic_write(page, to_html(sweep_page(found, page.parent)).encode())
    kept = pareto_front(found.found, found.rule)
    front = [each.name for each in kept]
    for line in busy_lines(found.found):
        click.echo(f"warning: {line}", err=True)
    if as_json:
        rows = {"candidates": found.found, "reference": found.reference, "front": front}
        print_json({"quality": found.rule.metric, "size": found.sized, **rows, "page": str(page)})
        return
    for each in found.found:
        click.echo(candidate_line(found, each, beaten=each not in kept))
    click.echo(f"beaten by none: {', '.join(front)}")
    click.echo(page)


@command()
@click.argument("folders", nargs=-1, required=True, type=PathArgument())
@click.option(
    "--gate",
    "gates",
    multiple=True,
    required=True,
    help="What it has to reach, such as 'psnr_drop<=0.3@95%'. Repeatable.",
)
@click.option(
    "--target",
    shell_complete=completion.targets,
    help="Only what has an engine for it: cpu, or a GPU such as rtx4090.",
)
@quality_option
@json_option
def recommend(
    folders: Sequence[Path],
    gates: Sequence[str],
    target: str | None,
    quality: str | None,
    as_json: bool,
) -> None:
    """Name the smallest quantization that passes every gate.

    It looks at every report below FOLDERS. The others are listed with the reason. Without one that
    passes, the command ends with 8, or with 13 where the samples of some leave a gate open.

    \b
    Example: arvg-trt recommend out/var-mini --gate 'kl<=0.001@95%' --target cpu
    """
    from ..engines.tensorrt.targets import resolve_target
    from ..validate.choice.candidates import read_candidates, report_files
    from ..validate.choice.page import busy_lines
    from ..validate.choice.recommend import recommend as choose
    from ..validate.report.gates import parse_gates
    from ..validate.report.schema import METRIC_NAMES

    wanted = parse_gates(gates, METRIC_NAMES)
    built_for = target if target in (None, "cpu") else resolve_target(target, "tensorrt_rtx").sm
    candidates = read_candidates(report_files(folders), quality)
    for line in busy_lines(candidates.found):
        click.echo(f"warning: {line}", err=True)
    found = choose(candidates, wanted, built_for)
    if found.chosen is None:
        undecided = any(each.open for each in found.considered)
        kind = InconclusiveError if undecided else AccuracyError
        error = kind(
            "; ".join(f"{each.name}: {each.reasons[0]}" for each in found.considered),
            where=", ".join(map(str, folders)),
            do=f"{_remedies(found)}, or change the gate",
        )
        error.measured = msgspec.structs.asdict(found)
        raise error
    if as_json:
        print_json(found)
        return
    for each in found.considered:
        click.echo(considered_line(each, chosen=each.file == found.file))


def _remedies(found: Recommendation) -> str:
    """Return what would decide the gates that are open, or bring others that pass."""
    return (
        "; ".join(
            f"validate {each.name} again with {each.remedy}"
            for each in found.considered
            if each.open
        )
        or "sweep more recipes"
    )


def considered_line(each: Considered, *, chosen: bool) -> str:
    """Return a candidate in a line: what gates read, its size, its speed, and if it is chosen."""
    from ..validate.choice.page import speed_text
    from ..validate.formats import metric_text, size

    read = [f"{metric} {metric_text(metric, value)}" for metric, value in each.gated.items()]
    parts = [*read, size(each.bytes), *filter(None, [speed_text(each)])]
    reasons = "; ".join(each.reasons) or "passes, and is larger"
    return f"{each.name}: {', '.join(parts)}: {'chosen' if chosen else reasons}"
