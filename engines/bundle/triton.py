"""Write a model repository of Triton Inference Server: a folder for each graph that it serves.

A model's folder has `config.pbtxt` and a version `1/` with the file that its back end looks for:
`model.plan`, or `model.onnx`, which is a folder where the graph has its weights beside it. Each
graph has its own, for the server reads nothing from outside a model's folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...errors import WorkspaceError
from ...graph.io import external_files, read_graph
from ...graph.weight_file import WEIGHTS, SharedWeights
from ...recipe.build import BuildOptions
from ...runtime.bundle.layout import GroupKind, TargetGroup
from ...runtime.generator import OTHER_GRAPHS
from ...samples.files import load_sample, sample_files
from ...workspace.facts import Exported, ModelKind, custom_graphs, model_name
from ...workspace.files import atomic_folder, sha256_file
from ...workspace.verify import read_manifest
from ...workspace.workspace import Workspace
from ..tensorrt.profiles import Profiles, graph_profiles
from .contents import GroupSources
from .triton_config import Model, ServedKind, read_model
from .triton_ensemble import Ensemble, chain

CONFIG, VERSION, README = "config.pbtxt", "1", "README.md"
PLAN, ONNX = "model.plan", "model.onnx"
KEPT = ".keep"  # an ensemble's version is an empty folder, which object stores and git lose
DECODE = ("lookup", "decoder")
OTHER_LIBRARY = (
    "Triton's tensorrt backend opens plans with TensorRT's own library, and a plan of TensorRT for "
    "RTX opens in that one's alone"
)

# Why no models are written of the other kinds of groups.
NOT_SERVED: dict[GroupKind, str] = {
    "tensorrt_rtx": "Triton has no back end for TensorRT for RTX",
    "openvino": "no models are written for Triton's OpenVINO back end",
}


@dataclass(frozen=True, slots=True)
class ServedFile:
    """Name a file below the repository, where its bytes are, and their sha256."""

    path: str
    source: Path
    sha256: str

    def write(self, folder: Path) -> None:
        """Copy the file; raise WorkspaceError unless the copy has its digest."""
        target = folder / self.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.source, target)
        require_digest(target, self.sha256, self.source)


@dataclass(frozen=True, slots=True)
class GraphOfShared:
    """Name the folder of a graph whose file of weights has those of other graphs too.

    `digests` are of the files that it is read from. It is written with its own weights alone:
    whole copies would make var-mini's ten graphs 71 MB instead of 7.
    """

    path: str
    source: Path
    digests: Mapping[Path, str]

    def write(self, folder: Path) -> None:
        """Write the graph and its weights; raise WorkspaceError for files that changed."""
        target = folder / self.path
        target.mkdir(parents=True)
        for path, digest in self.digests.items():
            require_digest(path, digest, path)
        with SharedWeights(target) as weights:
            weights.write(read_graph(self.source), Path(ONNX).stem)
        if not (target / WEIGHTS).stat().st_size:
            (target / WEIGHTS).unlink()


def require_digest(path: Path, sha256: str, source: Path) -> None:
    """Raise WorkspaceError, which names the source, unless a file has this digest."""
    if sha256_file(path) != sha256:
        what, do = "changed while it was read", "run the command again"
        raise WorkspaceError(what, where=str(source), do=do)


@dataclass(frozen=True, slots=True)
class Repository:
    """Hold what a model repository serves, and the files of its models."""

    groups: tuple[TargetGroup, ...]
    left_out: tuple[TargetGroup, ...]
    models: tuple[Model, ...]
    ensembles: tuple[Ensemble, ...]
    files: tuple[ServedFile | GraphOfShared, ...]


def served_groups(
    groups: Sequence[GroupSources], wanted: Sequence[str], where: str
) -> tuple[TargetGroup, ...]:
    """Return the groups that are wanted by name; by default all that Triton serves.

    Raises:
        WorkspaceError: there is no such group, or Triton has no back end for it.
    """
    found = {made.group.name: made.group for made in groups}
    for name in wanted:
        if name not in found:
            do = f"it has {', '.join(found)}" if found else "run `arvg-trt build` first"
            raise WorkspaceError(f"has no engines {name!r}", where=where, do=do)
        if found[name].kind == "tensorrt_rtx":
            raise WorkspaceError(
                OTHER_LIBRARY,
                where=name,
                do="build with --backend tensorrt on the GPU that serves, or serve the group cpu",
            )
    chosen = [found[name] for name in dict.fromkeys(wanted)] or list(found.values())
    served = tuple(group for group in chosen if group.kind in ("onnxruntime", "tensorrt"))
    if not served:
        why = "; ".join(dict.fromkeys(NOT_SERVED[group.kind] for group in chosen))
        raise WorkspaceError(
            f"has no engines that Triton serves: {why}" if found else "has no engines",
            where=where,
            do="run `arvg-trt build` for onnxruntime or tensorrt first",
        )
    return served


def describe_repository(
    workspace: Workspace,
    name: str,
    groups: Sequence[GroupSources],
    wanted: Sequence[str],
    max_batch: int,
) -> Repository:
    """Describe what is served of a quantization; `max_batch` is of models on the CPU.

    Raises:
        WorkspaceError: a group that is not served, or a graph whose inputs or outputs are not.
    """
    exported = Exported.open(workspace)
    served = served_groups(groups, wanted, f"{workspace.root}/engines/{name}")
    batches = exported.kind != "custom" or samples_are_single(workspace.folder("calibrate"))
    models: list[Model] = []
    ensembles: list[Ensemble] = []
    files: list[ServedFile | GraphOfShared] = []
    for group in served:
        folder = workspace.root / group.folder
        prefix = f"{model_name(exported.manifest)}-{name}-{group.name}"
        kind = msgspec.convert(group.kind, ServedKind)
        profiles = built_profiles(workspace, exported, folder) if kind == "tensorrt" else {}
        made: dict[str, Model] = {}
        for graph in graphs_of(folder, kind, exported):
            made[graph] = read_model(
                folder / f"{graph}.onnx",
                f"{prefix}-{graph}",
                kind,
                batches=batches,
                max_batch=max_batch,
                profiles=profiles.get(graph),
            )
            digests = {file.path: file.sha256 for file in group.files}
            files += model_files(made[graph], folder, group.folder, digests)
        models += made.values()
        ensembles += ensembles_of(prefix, made, exported.kind)
    left = tuple(m.group for m in groups if m.group not in served)
    return Repository(served, left, tuple(models), tuple(ensembles), tuple(files))


def graphs_of(folder: Path, kind: ServedKind, exported: Exported) -> list[str]:
    """Return the graphs of an engine folder that are served, those of a chain as they run."""
    suffix = ".engine" if kind == "tensorrt" else ".onnx"
    found = sorted(path.stem for path in folder.glob(f"*{suffix}"))
    if exported.kind == "generator":  # what accuracy is measured with does not generate
        return [graph for graph in found if graph not in OTHER_GRAPHS]
    order = [graph.name for graph in custom_graphs(exported.manifest)]
    order = order or ["encoder", *DECODE]
    return sorted(found, key=lambda graph: order.index(graph) if graph in order else len(order))


def samples_are_single(calibrate: Path) -> bool:
    """Return whether the first axis of a custom model's inputs is the batch, as its samples show.

    Of those, the batch has length 1; any other first axis, as of tokens, must not be joined.
    """
    samples = calibrate / "samples"
    files = sample_files(samples) if samples.is_dir() else []
    if not files:
        return False
    return all(array.shape[:1] == (1,) for array in load_sample(files[0]).values())


def built_profiles(workspace: Workspace, exported: Exported, folder: Path) -> dict[str, Profiles]:
    """Return the shapes that the engines of a folder take, by graph and input."""
    options = read_manifest(folder).options
    kept = {key: options[key] for key in BuildOptions.__struct_fields__ if key in options}
    return graph_profiles(workspace, exported.manifest, msgspec.convert(kept, BuildOptions))


def model_files(
    model: Model, folder: Path, place: str, digests: Mapping[str, str]
) -> Sequence[ServedFile | GraphOfShared]:
    """Return the files of a model's version, under the names that its back end looks for."""
    version = f"{model.name}/{VERSION}"
    if model.kind == "tensorrt":
        engine = f"{model.graph}.engine"
        digest = digests[f"{place}/{engine}"]
        return [ServedFile(f"{version}/{PLAN}", folder / engine, digest)]
    graph = f"{model.graph}.onnx"
    weights = external_files(folder / graph)
    home = f"{version}/{ONNX}" if weights else version
    names = {graph: ONNX} | {name: name for name in weights}
    found = {source: digests[f"{place}/{source}"] for source in names}
    if WEIGHTS in weights:
        read = {folder / source: digest for source, digest in found.items()}
        return [GraphOfShared(home, folder / graph, read)]
    return [
        ServedFile(f"{home}/{names[source]}", folder / source, digest)
        for source, digest in found.items()
    ]


def ensembles_of(prefix: str, models: Mapping[str, Model], kind: ModelKind) -> list[Ensemble]:
    """Return the ensembles of a group: `encode` and `decode`, or a chain of custom graphs."""
    if kind == "tokenizer":
        parts = {"encode": ("encoder",), "decode": DECODE}
        runs = {
            f"{prefix}-{part}": [models[graph] for graph in graphs if graph in models]
            for part, graphs in parts.items()
        }
        return [chain(name, run) for name, run in runs.items() if run]
    if kind == "custom" and len(models) > 1:
        name = f"{prefix}-chain"
        while name in {model.name for model in models.values()}:
            name += "-all"
        return [chain(name, list(models.values()))]
    return []


def write_repository(output: Path, repository: Repository, texts: Mapping[str, bytes]) -> None:
    """Write a repository to a new folder, with texts that the server passes over at its top.

    Raises:
        WorkspaceError: the folder is there already, or a file changed while it was read; nothing
            is left then.
    """
    if output.exists() or output.is_symlink():
        raise WorkspaceError("is there already", where=str(output), do="name a new folder")
    with atomic_folder(output) as folder:
        for file in repository.files:
            file.write(folder)
        served: tuple[Model | Ensemble, ...] = (*repository.models, *repository.ensembles)
        for model in served:
            version = folder / model.name / VERSION
            version.mkdir(parents=True, exist_ok=True)
            if isinstance(model, Ensemble):
                (version / KEPT).touch()
            (version.parent / CONFIG).write_text(model.config(), encoding="utf-8")
        for name, data in texts.items():
            (folder / name).write_bytes(data)
