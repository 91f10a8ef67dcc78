"""Say what changed since a stage last ran: its inputs, options, versions and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from ..errors import ArvgError, RecipeError, few
from ..families.variants import find_model
from ..pipeline.build import prepare_builds
from ..pipeline.calibrate import prepare_calibration
from ..pipeline.export import PARITY_PICTURES, prepare_any
from ..pipeline.quantize import prepare_quantization
from ..pipeline.validate import prepare_validation
from ..recipe.file import load_recipe
from ..recipe.recipe import Recipe
from ..workspace.facts import known_name
from ..workspace.files import decode_json, sha256_file
from ..workspace.manifest import MANIFEST, Manifest, is_up_to_date
from ..workspace.stage import PreparedStage, SilentReporter, package_versions
from ..workspace.verify import PLACES, read_manifest
from ..workspace.workspace import RECIPE_FILE, Workspace, require_workspace
from .checkpoint import check_checkpoint

State = Literal["up to date", "unchanged", "runs again", "never run"]
StageName = Literal["export", "calibrate", "quantize", "build", "validate"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an input, option, version or output by name, as it was and as it is; None: not there."""

    kind: Literal["input", "option", "version", "output"]
    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.name}: {shown(self.kind, self.old)} -> {shown(self.kind, self.new)}"
        )


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """Hold whether a stage's folder would be made anew, and what changed since it was made.

    `recipe` is the one that options were compared with, None where there is none; `note` says what
    could not be compared, and such a folder is `unchanged` at best.
    """

    stage: str
    folder: Path
    state: State
    changes: tuple[Change, ...] = ()
    recipe: str | None = None
    note: str | None = None


def why_stage(
    root: Path, stage: StageName, name: str | None = None, recipe_name: str | None = None
) -> list[Why]:
    """Return what changed since a stage of a workspace ran, for each of its folders.

    Options are compared with those of a recipe: the one that is given, or the workspace's last.

    Raises:
        WorkspaceError: there is no workspace.
        RecipeError: the recipe cannot be read, or is for models of another family.
    """
    require_workspace(root)
    workspace = Workspace(root)
    workspace.check_version()
    file = root / RECIPE_FILE
    given = recipe_name or (str(file) if file.is_file() else None)
    recipe = None if given is None else load_recipe(given)
    if recipe_name is not None and recipe is not None and stage != "export":
        require_family(recipe_name, recipe, workspace)
    called = name or (recipe.name if recipe else "int8")
    # Formats belong to a name: what another quantization was asked for says nothing of it.
    if recipe is not None and name not in (None, recipe.name):
        recipe = given = None
    try:
        prepared = prepare(workspace, stage, recipe) if recipe else []
    except ArvgError as error:  # an earlier stage is not there, or was changed
        note = f"compared without its recipe: {error}"
        return [loose(workspace, folder, stage, note) for folder in folders(root, stage, called)]
    if prepared:
        return [compared(each, given) for each in prepared]
    note = "options were not compared: give --recipe"
    if stage not in ("export", "calibrate") and called not in workspace.quantizations:
        note = f"no quantization {called} is here; --name takes one that is: "
        note += ", ".join(workspace.quantizations) or "there is none yet"
    return [loose(workspace, folder, stage, note) for folder in folders(root, stage, called)]


def require_family(name: str, recipe: Recipe, workspace: Workspace) -> None:
    """Raise RecipeError for a recipe of another family than the exported model's."""
    manifest = workspace.root / "export" / MANIFEST
    if not manifest.is_file():
        return
    model = known_name(read_manifest(manifest.parent))
    wanted, found = find_model(recipe.model).family, find_model(model).family
    if wanted != found:
        what = f"is for {wanted} models, and {workspace.root} holds {model}"
        raise RecipeError(what, where=name, do=f"name a recipe for {found} models")


def prepare(workspace: Workspace, stage: StageName, recipe: Recipe) -> list[PreparedStage]:
    """Return what a stage would do by a recipe; nothing is fetched for it."""
    reporter = SilentReporter()
    if stage == "export":
        graphs = [Path(graph) for graph in recipe.graphs]
        arguments = (workspace, recipe.model, recipe.checkpoint, PARITY_PICTURES, graphs, reporter)
        own = prepare_any(*arguments, weights=recipe.weights, title=recipe.title, cached=True)
        if recipe.checkpoint is not None and not is_up_to_date(own.folder, own.wanted):
            check_checkpoint(recipe)
        return [own]
    if stage == "calibrate":
        return [prepare_calibration(workspace, recipe.calibrate, reporter)]
    if stage == "quantize":
        return [prepare_quantization(workspace, recipe.name, recipe.quantize, reporter)]
    if stage == "validate":
        return [prepare_validation(workspace, recipe.name, recipe.validate, reporter)]
    return [
        prepared
        for options in recipe.build
        for prepared in prepare_builds(workspace, recipe.name, options, reporter)
    ]


def folders(root: Path, stage: StageName, name: str) -> list[Path]:
    """Return the folders that a stage has, or would have, in a workspace."""
    top, depth = PLACES[stage]
    place = root / top if depth == 1 else root / top / name
    if depth < 3:
        return [place]
    return sorted(path.parent for path in place.glob(f"*/{MANIFEST}")) or [place]


def compared(prepared: PreparedStage, recipe: str | None) -> Why:
    """Return how a folder differs from what a stage would make."""
    stage, folder = prepared.wanted.stage, prepared.folder
    if not (folder / MANIFEST).is_file():
        return Why(stage=stage, folder=folder, state="never run", recipe=recipe)
    old = read_manifest(folder)
    found = (*changes(old, prepared.wanted), *changed_outputs(folder, old))
    state: State = "runs again" if found else "up to date"
    return Why(stage=stage, folder=folder, state=state, changes=found, recipe=recipe)


def loose(workspace: Workspace, folder: Path, stage: StageName, note: str) -> Why:
    """Return how a folder differs from its workspace as it is now, whatever its options."""
    if not (folder / MANIFEST).is_file():
        return Why(stage=stage, folder=folder, state="never run", note=note)
    old = read_manifest(folder)
    now = msgspec.structs.replace(
        old,
        inputs={**old.inputs, **current_inputs(workspace, folder, old)},
        versions={**old.versions, **package_versions(*old.versions)},
    )
    found = (*changes(old, now), *changed_outputs(folder, old))
    state: State = "runs again" if found else "unchanged"
    return Why(stage=stage, folder=folder, state=state, changes=found, note=note)


def current_inputs(workspace: Workspace, folder: Path, old: Manifest) -> dict[str, str | None]:
    """Return the digests that files of earlier stages have now; None for those that are gone."""
    parts = folder.relative_to(workspace.root).parts
    name = parts[1] if len(parts) > 1 else ""
    found: dict[str, str | None] = {}
    for key in old.inputs:
        top, _, file = key.partition("/")
        if top == "engines":
            *label, file = file.split("/", 2)  # engines/NAME/LABEL/FILE
            place = workspace.root.joinpath(top, *label)
        elif top in ("export", "calibrate"):
            place = workspace.root / top
        elif top == "quantize":
            place = workspace.root / top / name
        else:  # a user's own file, whose place the manifest does not say
            continue
        manifest = place / MANIFEST
        known = decode_json(manifest, Manifest, do="").outputs if manifest.is_file() else {}
        found[key] = known.get(file)
    return found


def changes(old: Manifest, new: Manifest) -> tuple[Change, ...]:
    """Return what differs between what a folder was made from and what it would be made from."""
    return (
        *differences("input", old.inputs, new.inputs),
        *differences("option", old.options, plain(new.options)),
        *differences("version", old.versions, new.versions),
    )


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as a manifest has them when it is read."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(options))
    return found


def differences(
    kind: Literal["input", "option", "version"], old: dict[str, Any], new: dict[str, Any]
) -> Iterator[Change]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield Change(kind=kind, name=name, old=old.get(name), new=new.get(name))


def changed_outputs(folder: Path, manifest: Manifest) -> Iterator[Change]:
    """Yield the files of a folder that are not as the stage left them."""
    for name, digest in sorted(manifest.outputs.items()):
        path = folder / name
        now = sha256_file(path) if path.is_file() else None
        if now != digest:
            yield Change(kind="output", name=name, old=digest, new=now)


def shown(kind: str, value: Any) -> str:
    """Return a value as a line shows it: the start of a digest, or JSON."""
    if value is None:
        return "none"
    if kind in ("input", "output"):
        return str(value)[:12]
    if isinstance(value, list | tuple):
        return f"[{few([shown(kind, each) for each in value])}]"
    return str(value) if kind == "version" else msgspec.json.encode(value).decode()
