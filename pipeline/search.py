"""The search stage: measured losses of formats, an integer program, and the plan it finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from ..calibrate.calibrated import Calibrated
from ..errors import RecipeError
from ..quantize.search.budget import parse_all
from ..quantize.search.candidates import search_items
from ..quantize.search.facts import SearchFacts
from ..recipe.commands import SearchOptions
from ..recipe.quantize import QuantizeOptions
from ..samples.files import graph_of, sample_files
from ..workspace.facts import model_name
from ..workspace.files import encode_json
from ..workspace.manifest import Manifest
from ..workspace.stage import Reporter, StageResult, in_stage, package_versions, run_stage
from ..workspace.workspace import Workspace
from .quantize import require_halves_of_tokenizer


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
    reporter = in_stage(reporter, "search")
    source = Calibrated.open(workspace)
    require_halves_of_tokenizer(options, source.exported)
    require_whole_samples(source)
    plan = make_plan(source.planned, options, decoder=source.decoder)
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
            "quantize": options.recorded(),
            "search": msgspec.to_builtins(search),
        },
        versions=package_versions("onnxruntime", "onnx-ir", "numpy", "scipy"),
    )

    def work(folder: Path) -> SearchFacts:
        from ..quantize.search.search import Search

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
            f"{model_name(source.exported)} is calibrated on runs of {graph}.onnx, and a "
            "search measures whole samples",
            do="choose its bits with a recipe, or edit plan.json",
        )
