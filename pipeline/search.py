"""The search stage: measured losses of formats, an integer program, and the plan it finds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..calibrate.calibrated import Calibrated
from ..errors import RecipeError
from ..quantize.search.budget import parse_all
from ..quantize.search.candidates import search_items
from ..recipe.options import Options, QuantizeOptions, require_at_least
from ..samples.files import graph_of, sample_files
from ..workspace.artifacts import Manifest, Workspace, encode_json
from ..workspace.stage import Reporter, StageResult, package_versions, run_stage
from .quantize import require_halves_of_tokenizer

Grid = Literal["uniform", "log", "block"]


class SearchOptions(Options, frozen=True, kw_only=True):
    """`budgets` all hold; `bits` and `grids` are what a weight may have, float always too.

    `block` is INT4 in blocks of input channels, for linears. `samples` of the calibration's are
    run for each loss. `all_sites` also searches those that the
    method leaves out by rule; what a recipe excludes stays out.
    """

    budgets: tuple[str, ...]
    samples: int = 4
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    grids: tuple[Grid, ...] = ("uniform", "log", "block")
    all_sites: bool = False

    def __post_init__(self) -> None:
        require_at_least(self, samples=1)
        if not self.bits or not self.grids or any(not 2 <= b <= 8 for b in self.bits):
            raise ValueError("a search needs bits from 2 to 8 and a grid")
        if set(self.grids) == {"block"}:
            raise ValueError("convolutions have no blocks: give uniform or log beside them")


def search_stage(
    workspace: Workspace,
    name: str,
    options: QuantizeOptions,
    search: SearchOptions,
    reporter: Reporter,
) -> StageResult:
    """Write the plan of least loss within the budgets, for `quantize --plan`.

    Raises:
        RecipeError: a budget that cannot be read or reached, or nothing to search.
        ModuleNotFoundError: scipy is not installed.
    """
    from ..quantize.plan import make_plan
    from ..quantize.search.knapsack import allocate  # noqa: F401  # before anything is measured

    budgets = parse_all(search.budgets)
    if options.quantize_method == "fp8" or options.integer_exponents:
        raise RecipeError("a search has no FP8 grids", do="use per_channel")
    source = Calibrated.open(workspace)
    require_halves_of_tokenizer(options, source.exported)
    require_whole_samples(source)
    plan = make_plan(source.planned, options)
    items = search_items(
        source,
        plan,
        options,
        bits=search.bits,
        grids=search.grids,
        all_sites=search.all_sites,
    )
    wanted = Manifest(
        stage="search",
        inputs=source.digests,
        options={
            "quantize": msgspec.to_builtins(options),
            "search": msgspec.to_builtins(search),
        },
        versions=package_versions("onnxruntime", "onnx-ir", "numpy", "scipy"),
    )

    def work(folder: Path) -> Mapping[str, Any]:
        from ..quantize.search.run import Search

        scratch = folder / "scratch"
        run = Search(source, plan, items, options, budgets, search.samples, scratch, reporter)
        found = run.find()
        (folder / "plan.json").write_bytes(encode_json(found.plan))
        (folder / "sensitivity.json").write_bytes(encode_json(run.sensitivity()))
        shutil.rmtree(scratch)
        return found.results

    return run_stage(workspace.folder("search", name), wanted, work)


def require_whole_samples(source: Calibrated) -> None:
    """Raises RecipeError for a MAR, whose graphs are sampled apart: losses are of whole samples."""
    graph = next((g for p in sample_files(source.samples) if (g := graph_of(p))), None)
    if graph is not None:
        raise RecipeError(
            f"{source.exported.options['model']} is calibrated on runs of {graph}.onnx, and a "
            "search measures whole samples",
            do="choose its bits with a recipe, or edit plan.json",
        )
