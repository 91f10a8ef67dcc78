"""Say what a run would do: which stages, on what, and what they take as far as that is known."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ..errors import WorkspaceError
from ..families.variants import find_model
from ..pipeline.export import refuse_other_model
from ..pipeline.run import check_recipe, require_extras
from ..recipe.build import BuildOptions
from ..recipe.recipe import Recipe
from ..recipe.summary import summarize
from ..workspace.facts import CPU_BACKENDS, FP16, is_of_cpu
from ..workspace.files import folder_problem
from ..workspace.manifest import MANIFEST, is_up_to_date
from ..workspace.stage import PreparedStage
from ..workspace.times import Took, read_times
from ..workspace.verify import read_manifest
from ..workspace.workspace import OTHER_WORKSPACE, WORKSPACE_FILE, Workspace
from .earlier_runs import latest_alike
from .fetching import NOTHING, Fetched, must_fetch, published_files
from .run_costs import expected
from .why import StageName, changes, prepare

STAGES: tuple[StageName, ...] = ("export", "calibrate", "quantize", "build", "validate")
FLOAT_BYTES = 4
REASONS = 3  # that a line has; `why` has all


class PlannedStage(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a stage would do, and what it takes; None is unknown.

    `source` says where seconds, memory and disk come from: an earlier run in this workspace, or an
    estimate from sizes, which the memory of a TensorRT build always is. `like` is the model whose
    measured run on a `machine` an estimate is made of, or `like_folder` the folder of this
    workspace. `fetch` is what is fetched of a published checkpoint, in bytes where known;
    `fetch_checked` whether the Hub has it, None where nothing is fetched.
    """

    stage: StageName
    folder: str
    state: Literal["up to date", "runs"]
    makes: str
    because: tuple[str, ...] = ()
    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None
    source: Literal["earlier run", "estimate"] | None = None
    like: str | None = None
    machine: str | None = None
    like_folder: str | None = None
    fetch: tuple[str, ...] = ()
    fetch_bytes: int | None = None
    fetch_checked: bool | None = None


def plan_run(recipe: Recipe) -> list[PlannedStage]:
    """Return what `run_recipe` would do; nothing is fetched, made or changed.

    No lock is taken: where another process works, the plan is of what is there now.

    Raises:
        ArvgError: what a stage would refuse and can be told now, and a disk without room.
    """
    require_extras(recipe)
    check_recipe(recipe)
    root = Path(recipe.workspace)
    if (problem := folder_problem(root)) is not None:
        raise WorkspaceError(problem[0], where=str(problem[1]), do=OTHER_WORKSPACE)
    if not (root / WORKSPACE_FILE).is_file():
        fetch = published_files(recipe) if must_fetch(recipe) else NOTHING
        planned = [row for stage in STAGES for row in rows_of(recipe, stage, root, {}, None, fetch)]
    else:
        workspace = Workspace(root)
        workspace.check_version()
        refuse_other_model(workspace, recipe.model, [Path(graph) for graph in recipe.graphs])
        planned = plan_stages(recipe, workspace)
    require_disk(planned, root)
    return planned


def plan_stages(recipe: Recipe, workspace: Workspace) -> list[PlannedStage]:
    """Return what would be done in a workspace: from the first stage that runs, all run."""
    from ..export.checkpoint.hub import NotCached

    times, fetch = read_times(workspace.root), NOTHING
    planned: list[PlannedStage] = []
    stale: StageName | None = None
    for stage in STAGES:
        prepared = None
        if stale is None:
            try:
                prepared = prepare(workspace, stage, recipe)
            except NotCached:
                fetch = published_files(recipe)
        rows = rows_of(recipe, stage, workspace.root, times, prepared, fetch, stale)
        if stale is None and any(row.state == "runs" for row in rows):
            stale = stage
        planned += rows
    return planned


def rows_of(
    recipe: Recipe,
    stage: StageName,
    root: Path,
    times: dict[str, Took],
    prepared: Sequence[PreparedStage] | None,
    fetch: Fetched,
    stale: StageName | None = None,
) -> list[PlannedStage]:
    """Return a row for each folder of a stage; not `prepared` it runs, behind one that is stale."""
    makes = "" if stage == "build" else made_by(recipe, stage)  # each of its folders has its own
    if prepared is not None:
        return [
            with_expected(prepared_row(each, stage, root, makes, times), recipe)
            for each in prepared
        ]
    files, size, checked = fetch if stage == "export" else NOTHING
    weights = FLOAT_BYTES * find_model(recipe.model).parameters if stage == "export" else 0
    because = (f"{stale} runs",) if stale else ()
    return [
        msgspec.structs.replace(
            with_weights(with_expected(measured(stage, folder, times), recipe), weights),
            makes=text,
            because=because,
            fetch=files,
            fetch_bytes=size,
            fetch_checked=checked,
        )
        for folder, text in places(recipe, stage, makes)
    ]


def with_expected(row: PlannedStage, recipe: Recipe) -> PlannedStage:
    """Return the row with what runs that were measured let expect, where nothing better is known.

    TensorRT's builder has an estimate of its own.
    """
    if row.source is not None or row.state != "runs":
        return row
    if row.stage == "build" and not is_of_cpu(row.folder):
        return row
    found = expected(recipe, row.stage)
    if found is None:
        return row
    return msgspec.structs.replace(
        row,
        seconds=found.seconds,
        memory=found.memory,
        disk=found.disk,
        source="estimate",
        like=found.like,
        machine=found.machine,
    )


def with_weights(row: PlannedStage, weights: int) -> PlannedStage:
    """Return the row of an export with its FP32 weights as disk, where it was not made before.

    A generator's image tokenizer comes on top.
    """
    if row.source is not None or not weights:
        return row
    return msgspec.structs.replace(row, disk=weights, source="estimate")


def places(recipe: Recipe, stage: StageName, makes: str) -> list[tuple[str, str]]:
    """Return the folders of a stage that was not prepared, and what each holds."""
    if stage in ("export", "calibrate"):
        return [(stage, makes)]
    if stage != "build":
        return [(f"{stage}/{recipe.name}", makes)]
    return [place for each in recipe.build for place in build_places(recipe.name, each)]


def prepared_row(
    prepared: PreparedStage, stage: StageName, root: Path, makes: str, times: dict[str, Took]
) -> PlannedStage:
    """Return the row of a stage whose inputs are there."""
    folder = prepared.folder.relative_to(root).as_posix()
    row = measured(stage, folder, times)
    if stage == "build":
        options = prepared.wanted.options
        makes = engines_text(options["backend"], options.get("targets") or (), options["name"])
    row = msgspec.structs.replace(row, makes=makes)
    if is_up_to_date(prepared.folder, prepared.wanted):
        return msgspec.structs.replace(row, state="up to date")
    row = with_build_estimate(row, prepared, root)
    if not (prepared.folder / MANIFEST).is_file():
        return row
    found = [str(each) for each in changes(read_manifest(prepared.folder), prepared.wanted)]
    shown = found[:REASONS] + ([f"{len(found) - REASONS} more"] if len(found) > REASONS else [])
    return msgspec.structs.replace(row, because=tuple(shown) or ("its files were changed",))


def with_build_estimate(row: PlannedStage, prepared: PreparedStage, root: Path) -> PlannedStage:
    """Return the row of a TensorRT build with what the builder takes for graphs of their size.

    Raises:
        OutOfMemory: the builder takes more memory than there is.
        WorkspaceError: there is less disk than the engines take.
    """
    from ..engines.tensorrt.preflight import estimate, require_room

    options = prepared.wanted.options
    if row.stage != "build" or options["backend"] in CPU_BACKENDS:
        return row
    name = str(options["name"])
    source = root / "export" if name == FP16 else root / "quantize" / name
    needed = estimate(sorted(source.glob("*.onnx")), 1)
    require_room(needed, root)
    if row.source is None:
        row = msgspec.structs.replace(
            row, seconds=needed.seconds, disk=needed.disk, source="estimate"
        )
    return msgspec.structs.replace(row, memory=needed.memory)


def measured(stage: StageName, folder: str, times: dict[str, Took]) -> PlannedStage:
    """Return a row with what the stage took before in this workspace, where it was timed.

    Another quantization's time is an estimate: its bits and rounding may be others.
    """
    took, other = times.get(folder), None
    if took is None and (alike := latest_alike(times, folder)) is not None:
        other, took = alike
    return PlannedStage(
        stage=stage,
        folder=folder,
        state="runs",
        makes="",
        seconds=took.seconds if took else None,
        memory=took.memory if took else None,
        disk=took.bytes if took else None,
        source=None if took is None else "estimate" if other else "earlier run",
        like_folder=other,
    )


def made_by(recipe: Recipe, stage: StageName) -> str:
    """Return what a stage makes, in a few words."""
    entry = find_model(recipe.model)
    if stage == "export":
        return f"{recipe.model}: {', '.join(entry.graphs or map(str, recipe.graphs))}"
    if stage == "calibrate":
        return f"statistics of {recipe.calibrate.count} samples"
    if stage == "quantize":
        return summarize(recipe)
    gates = ", ".join(recipe.validate.gates)
    return f"a report, gates {gates}" if gates else "a report"


def build_places(name: str, options: BuildOptions) -> list[tuple[str, str]]:
    """Return the folders of a back end's engines; some targets get one apart by their plan."""
    from ..engines.tensorrt.engine import foreseen_folder

    folder = options.cpu_folder if options.on_cpu else foreseen_folder(options)
    names = [name, FP16] if options.fp16 and not options.on_cpu else [name]
    backend, targets = options.backend, options.targets
    return [(f"engines/{n}/{folder}", engines_text(backend, targets, n)) for n in names]


def engines_text(backend: str, targets: Sequence[str], name: str) -> str:
    """Return the engines of one folder in words."""
    graphs = " of the unquantized graphs" if name == FP16 else ""
    return f"{backend} engines{graphs}" + (f" for {', '.join(targets)}" if targets else "")


def require_disk(planned: Sequence[PlannedStage], root: Path) -> None:
    """Raise WorkspaceError where what is known to be fetched or written does not fit."""
    from huggingface_hub import constants

    needs: dict[Path, int] = {}
    for row in planned:
        if row.state == "runs":
            needs[root] = needs.get(root, 0) + (row.disk or 0)
            if row.fetch_bytes:
                cache = Path(constants.HF_HUB_CACHE)
                needs[cache] = needs.get(cache, 0) + row.fetch_bytes
    for folder, needed in needs.items():
        place = Path(os.path.abspath(folder))
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        if free < needed:
            raise WorkspaceError(
                f"takes about {needed / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free",
                where=str(folder),
                do="free disk space, or use another disk",
            )
