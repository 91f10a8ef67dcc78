"""Say what a CI job of a recipe needs: packages, files, a GPU; refuse what a runner lacks."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ExportError, RecipeError
from ..export.checkpoint.resolve import is_hub_id
from ..extras import require_packages
from ..families.variants import IN_MINIS, MINIS, find_model, shipped_checkpoint
from ..recipe.file import PRESETS, find_recipe, load_recipe
from ..recipe.paths import CHECKPOINT, GRAPH_KEYS, named_paths
from ..recipe.recipe import Recipe
from ..runtime.families import find_family
from ..validate.metric_names import parse_gates_of
from ..validate.report.gates import parse_gates
from ..validate.report.schema import METRIC_NAMES
from ..workspace.stage import tool_version
from .repository import require_not_ignored, require_root, uses_large_files
from .text import as_path, require_printable

HOSTED = re.compile(r"(ubuntu|windows|macos)-", re.IGNORECASE)  # runners of GitHub, without GPUs
BASELINES = "baselines"
_SAFE_PATH = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_./ @+,=-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """Hold what a user chose: the main branch, Python, runners' labels, a bundle, the package.

    ``package`` is what pip installs in place of this version of arvg-trt: a wheel or an address.
    """

    branch: str = "main"
    python: str = "3.11"
    runners: tuple[str, ...] = ()
    bundle: bool = False
    package: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold what a CI file says of a recipe, as plain text that is not quoted yet.

    ``digest`` is that of a preset, which the repository does not have. ``slug`` names caches,
    artefacts and the baseline. ``workspace`` is relative to the repository;
    with ``moved`` it is not the recipe's own. ``files`` and ``folders`` are what the repository has
    of the recipe, the checkpoint and the data. ``weights`` is the package with those of a small
    model. ``notes`` are for the person who reads the file.
    """

    recipe: str
    digest: str
    slug: str
    name: str
    workspace: str
    moved: bool
    requirement: str
    version: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    from_hub: bool
    login: bool
    large_files: bool
    notes: tuple[str, ...]
    weights: str | None

    @property
    def packages(self) -> tuple[str, ...]:
        """Return what pip installs."""
        return (self.requirement, *([self.weights] if self.weights else ()))

    @property
    def report(self) -> str:
        return f"{self.workspace}/validate/{self.name}"

    @property
    def baseline(self) -> str:
        return f"{BASELINES}/{self.slug}.json"

    @property
    def run_words(self) -> tuple[str, ...]:
        """Return the words of the command that runs the recipe."""
        moved = ("--workspace", self.workspace) if self.moved else ()
        return ("arvg-trt", "run", *moved, self.recipe)


def describe_job(name: str, options: JobOptions) -> Job:
    """Return the job of a preset or of a recipe file in this folder, the repository's root.

    Raises:
        RecipeError: a recipe, gates, data or a back end that a job there could not use.
        ExportError: a model that is not known, or whose weights are nowhere.
    """
    found = find_recipe(name)
    recipe = load_recipe(found)
    parse_gates_of(find_family(find_model(recipe.model).family).kind, recipe.validate.gates)
    preset = found.parent == PRESETS
    written = found.stem if preset else inside(str(found), "the recipe")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", found.stem).strip("-.") or "recipe"
    workspace = own_workspace(recipe)
    hosted = not options.runners or any(HOSTED.match(label) for label in options.runners)
    require_gpu(recipe, hosted)
    local, absolute = split_data(recipe, hosted)
    here = [*([] if preset else [written]), *local]
    if here:
        require_root()
        require_not_ignored(here)
    if options.bundle and not recipe.build:
        raise RecipeError("the recipe builds no engines to bundle", do="leave out --bundle")
    hub, login = hub_facts(recipe)
    notes = [f"Its runner has to have {path}." for path in absolute]
    if hub:
        notes.append(f"{recipe.checkpoint} is fetched from the Hugging Face Hub, and cached.")
    if login:
        notes.append("Its terms have to be accepted there; the secret HF_TOKEN is who did.")
    if options.bundle and recipe.checkpoint is not None:
        notes.append("Give `arvg-trt bundle` the licence of the weights: --license FILE.")
    if hosted and (speeds := speed_gates(recipe)):
        notes.append(f"A gate on speed varies from one shared machine to the next: {speeds}.")
    if options.package and needs_minis(recipe):
        notes.append(f"The weights of {recipe.model} come from PyPI, by {MINIS} of this version.")
    if not recipe.validate.gates:
        notes.append("The recipe has no gates: only the comparison with a baseline can fail.")
    version = tool_version()
    return Job(
        recipe=written,
        digest=hashlib.sha256(found.read_bytes()).hexdigest()[:16] if preset else "",
        slug=slug,
        name=recipe.name,
        workspace=workspace or f"out/{recipe.name}",
        moved=workspace is None,
        requirement=requirement(recipe, options.package, version),
        version=version,
        files=tuple(path for path in here if Path(path).is_file()),
        folders=tuple(path for path in here if Path(path).is_dir()),
        from_hub=hub,
        login=login,
        large_files=uses_large_files(),
        notes=tuple(notes),
        weights=f"{MINIS}=={version}" if needs_minis(recipe) else None,
    )


def needs_minis(recipe: Recipe) -> bool:
    """Return whether the weights of a recipe's model come with a package of their own."""
    return recipe.checkpoint is None and recipe.model in IN_MINIS


def inside(path: str, what: str) -> str:
    """Return a path relative to this folder, with slashes.

    Raises:
        RecipeError: it leads out of this folder.
    """
    require_printable(path, what)
    relative = Path(path)
    if relative.is_absolute():
        here = Path.cwd()
        relative = relative.relative_to(here) if relative.is_relative_to(here) else relative
    plain = PurePosixPath(relative.as_posix())
    if plain.is_absolute() or ".." in plain.parts:
        raise RecipeError(
            f"{what} is outside of this folder, and CI has the repository alone",
            where=path,
            do="run this in the root of the repository that has it",
        )
    return as_path(str(plain))


def own_workspace(recipe: Recipe) -> str | None:
    """Return the recipe's workspace; None for one that a cache or an artefact cannot name."""
    plain = PurePosixPath(recipe.workspace)
    fits = _SAFE_PATH.fullmatch(recipe.workspace) and recipe.workspace == recipe.workspace.strip()
    inner = not plain.is_absolute() and ".." not in plain.parts and plain.parts
    return str(plain) if fits and inner else None


def require_gpu(recipe: Recipe, hosted: bool) -> None:
    """Raise RecipeError for what needs a GPU, where the runner is one that has none."""
    needs: list[str] = [b.backend for b in recipe.build if b.backend == "tensorrt"]
    needs += [recipe.validate.device] if recipe.validate.device.startswith("cuda") else []
    if needs and hosted:
        raise RecipeError(
            f"{needs[0]} needs a GPU, and runners of the platform have none",
            do="name a runner of yours that has one: --runner LABEL; or leave it out for CI",
        )


def data_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the keys of a recipe that name files or folders, with what they name.

    A graph is followed by the files of its weights.
    """
    for key, path in named_paths(recipe):
        if key == CHECKPOINT and is_hub_id(path):
            continue
        yield key, path
        if key in GRAPH_KEYS and Path(path).is_file():
            yield from ((f"a weight file of {path}", file) for file in weight_files(path))


def weight_files(graph: str) -> Iterator[str]:
    """Yield the files that have the weights of a graph; none where it holds them itself.

    Raises:
        ArvgError: reading graphs takes packages that are not installed.
        ExportError: it is no ONNX file.
    """
    require_packages("export", but=["torch", "onnxscript"])
    from ..graph.io import external_files

    do = "name an ONNX file; one that Git LFS has not fetched yet comes by `git lfs pull`"
    for location in external_files(Path(graph), error=ExportError, do=do):
        yield os.path.normpath(os.path.join(os.path.dirname(graph), location))


def split_data(recipe: Recipe, hosted: bool) -> tuple[list[str], list[str]]:
    """Return the data in this folder, and the absolute paths that a runner of the user's has.

    Raises:
        RecipeError: a file or folder that a job would not find.
    """
    local: list[str] = []
    absolute: list[str] = []
    for key, path in data_of(recipe):
        require_printable(path, key)
        if Path(path).is_absolute() and not hosted:
            absolute.append(path)
            continue
        plain = inside(path, key)
        if not Path(plain).exists():
            raise RecipeError(
                f"{key} is not in this folder, so a job would not find it",
                where=path,
                do="add it to the repository, or name a runner that has it at an absolute path: "
                "--runner LABEL",
            )
        local.append(plain)
    return list(dict.fromkeys(local)), absolute


def speed_gates(recipe: Recipe) -> str:
    """Return the gates of a recipe that read a speed."""
    gates = [str(gate) for gate in parse_gates(recipe.validate.gates, METRIC_NAMES)]
    return ", ".join(gate for gate in gates if re.search("speedup|latency_ms", gate))


def hub_facts(recipe: Recipe) -> tuple[bool, bool]:
    """Return whether the checkpoint is fetched from the Hub, and whether that takes a login.

    Raises:
        ExportError: there is no checkpoint at all.
    """
    model = find_model(recipe.model)
    if find_family(model.family).source == "graphs":
        return False, False
    if recipe.checkpoint is None:
        shipped_checkpoint(model)
        return False, False
    hub = is_hub_id(recipe.checkpoint)
    return hub, hub and any(file.login for file in model.published)


# Extras by the back ends that need them; `cpu` chooses between ONNX Runtime and OpenVINO.
BROUGHT_BY = {
    "rtx": {"tensorrt_rtx"},
    "tensorrt": {"tensorrt"},
    "openvino": {"openvino", "cpu"},
}


def requirement(recipe: Recipe, package: str | None, version: str) -> str:
    """Return what pip installs: the package with the extras that the stages of a recipe need."""
    extras = ["export", "report"]
    backends = {build.backend for build in recipe.build}
    extras += [extra for extra, users in BROUGHT_BY.items() if backends & users]
    if "rtx" in extras and recipe.validate.device.startswith("cuda"):
        extras.append("edge-rtx")  # the provider that runs the engines
    if recipe.validate.second_opinion and len(extras) == 2:
        extras.append("kit")  # brings Polygraphy, as builders do
    listed = f"[{','.join(extras)}]"
    if package is None:
        return f"arvg-trt{listed}=={version}"
    require_printable(package, "--package")
    return f"arvg-trt{listed} @ {package}" if "://" in package else f"{as_path(package)}{listed}"
