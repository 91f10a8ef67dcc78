"""Collect the files of a workspace that a bundle ships, by the devices that take them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...errors import WorkspaceError
from ...runtime.bundle.layout import (
    EXPANDED_VERSION,
    SCHEMA_VERSION,
    BundleFacts,
    BundleFile,
    GroupKind,
    TargetGroup,
)
from ...runtime.bundle.plan_header import plan_problem, read_plan_header
from ...runtime.sessions.openvino_files import is_openvino
from ...workspace.facts import CPU_BACKENDS, EngineFacts, Exported, facts, model_name
from ...workspace.files import sha256_file
from ...workspace.manifest import MANIFEST, Manifest
from ...workspace.stage import require_outputs, tool_version
from ...workspace.verify import read_manifest, verify
from ...workspace.workspace import WORKSPACE_FILE, Workspace
from ..facts import BuildFacts

Source = Path | bytes
CHOSEN = "cpu"  # the folder and back end of the faster engine for the CPU


@dataclass(frozen=True, slots=True)
class Contents:
    """Hold what a bundle says of itself, and where the bytes of each file are, by its path."""

    facts: BundleFacts
    sources: Mapping[str, Source]


@dataclass(frozen=True, slots=True)
class GroupSources:
    """Hold a target group, and where the bytes of its files are, by their paths."""

    group: TargetGroup
    sources: Mapping[str, Source]


def collect(
    workspace: Workspace,
    name: str,
    documents: Mapping[str, bytes],
    groups: Sequence[GroupSources],
    *,
    packed: bool = False,
) -> Contents:
    """Return the contents of a bundle of a quantization; readers must know `packed` groups."""
    exported = Exported.open(workspace)
    newer = any(made.group.kind == "openvino" for made in groups)
    held = BundleFacts(
        version=SCHEMA_VERSION if packed or newer else EXPANDED_VERSION,
        name=name,
        model=model_name(exported.manifest),
        kind=exported.kind,
        quantization=name,
        tool=f"arvg-trt {tool_version()}",
        groups=tuple(made.group for made in groups),
        documents=tuple(bundle_file(path, data) for path, data in sorted(documents.items())),
    )
    sources: dict[str, Source] = dict(documents)
    for made in groups:
        sources |= made.sources
    return Contents(held, sources)


def engine_groups(workspace: Workspace, name: str) -> tuple[GroupSources, ...]:
    """Return a target group for each folder of engines of a quantization.

    Raises:
        WorkspaceError: there is none, or one is not as it was built.
    """
    folders = folders_of_engines(workspace.root, name)
    if not folders:
        do = f"run `arvg-trt build {workspace.root} --name {name}` first"
        if others := [each for each in workspace.quantizations if each != name]:
            do += f", or give --name {' or '.join(others)}"
        raise WorkspaceError(f"has no engines of {name}", where=str(workspace.root), do=do)
    groups = [engine_group(workspace.root, folder) for folder in folders]
    # The faster engine for the CPU may lie there a second time under its own name.
    names = [Path(made.group.folder).name for made in groups]
    return tuple(
        made
        for made, called in zip(groups, names, strict=True)
        if called != CHOSEN or made.group.kind not in names
    )


def pack_warnings(groups: Sequence[GroupSources], root: Path, name: str) -> list[str]:
    """Return a line for each thing that a device, or the reader of the report, may not expect."""
    validated = root / "validate" / name
    known = (validated / MANIFEST).is_file()
    unreported = report_warning(groups, read_manifest(validated).inputs) if known else None
    found = (cpu_warning(groups, root, name), unreported, *overlap_warnings(groups))
    return [text for text in found if text is not None]


def cpu_warning(groups: Sequence[GroupSources], root: Path, name: str) -> str | None:
    """Return that no engine of a bundle opens on a CPU, and what adds one; None if one does."""
    if any(made.group.kind in CPU_BACKENDS for made in groups):
        return None
    what = "no engine in it opens on a CPU: it ends with an error on a machine without its GPU"
    if any("FP8" in made.group.precision for made in groups):
        return f"{what} (no CPU runs FP8: bundle an INT8 quantization for those)"
    return f"{what} (`arvg-trt build {root} --name {name} --backend cpu` adds one)"


def overlap_warnings(groups: Sequence[GroupSources]) -> list[str]:
    """Return a line for each target that two groups of a kind serve; TensorRT's on one GPU."""
    serving: dict[tuple[str, str, str], list[str]] = {}
    for group in (made.group for made in groups):
        for target in group.targets:
            serving.setdefault((group.kind, group.gpu, target), []).append(group.name)
    texts: dict[str, list[str]] = {}
    for (_, _, target), names in serving.items():
        if len(names) > 1:
            texts.setdefault(" and ".join(names), []).append(target)
    return [
        f"{names} both serve {' '.join(targets)}: a device takes the first (remove the other's "
        "folder from the workspace to leave it out)"
        for names, targets in texts.items()
    ]


def report_warning(groups: Sequence[GroupSources], validated: Mapping[str, str]) -> str | None:
    """Return which engines the report that is shipped does not speak of; None: of all.

    `validated` has the digests of the files that were validated, by their paths in the workspace.
    """
    missing, newer = [], []
    for group in (made.group for made in groups):
        known = [file for file in group.files if file.path in validated]
        if not known:
            missing.append(group.name)
        elif any(validated[file.path] != file.sha256 for file in known):
            newer.append(group.name)
    parts = [
        f"{', '.join(names)} {what}"
        for names, what in (
            (missing, "not in the report that is shipped"),
            (newer, "built after that report"),
        )
        if names
    ]
    return f"{'; '.join(parts)} (`arvg-trt validate` again adds it)" if parts else None


def folders_of_engines(root: Path, name: str) -> list[Path]:
    """Return the folders of a quantization's engines, without what a killed build left."""
    # With a "/" at its end the pattern would match files too before Python 3.11.
    found = (root / "engines" / name).glob("[!.]*")
    return sorted(path for path in found if path.is_dir())


def engine_group(root: Path, folder: Path) -> GroupSources:
    manifest = verify(folder)
    options = facts(manifest, EngineFacts, "options")
    built = facts(manifest, BuildFacts)
    kind = msgspec.convert(kind_of_folder(folder, options.backend), GroupKind)
    version = manifest.versions.get(kind, "")
    for path in sorted(folder.glob("*.engine")):
        header = read_plan_header(path)
        assert header is not None, "an engine by its name"
        problem = plan_problem(header, kind, version, options.targets)
        if problem is not None:
            do = f"run `arvg-trt build --backend {kind}` again"
            raise WorkspaceError(problem, where=str(path), do=do)
    precisions = dict.fromkeys(row.precision for row in built.engines)
    place = folder.relative_to(root)
    files, sources = stage_files(root, folder, manifest)
    group = TargetGroup(
        name=group_name(folder, kind),
        kind=kind,
        folder=place.as_posix(),
        version=version,
        targets=options.targets,
        precision=", ".join(precisions),
        gpu=built.gpu or "",
        files=files,
    )
    return GroupSources(group, sources)


def kind_of_folder(folder: Path, backend: str) -> str:
    """Return the back end that opens a folder of engines; `cpu` stands for the faster one."""
    if backend != CHOSEN:
        return backend
    return "openvino" if is_openvino(folder) else "onnxruntime"


def group_name(folder: Path, kind: GroupKind) -> str:
    """Return the name of a target group: that of its folder, for the CPU one of its own."""
    if kind == "onnxruntime":
        return "cpu"
    return "openvino" if folder.name == CHOSEN else folder.name


def reference_group(workspace: Workspace, name: str) -> GroupSources:
    """Return what `validate` needs beside the engines: FP32 graphs, Q/DQ graphs, manifests.

    Samples of the calibration stay at home: they may be nobody's to hand on.

    Raises:
        WorkspaceError: a stage was not run, or its files are not what it wrote.
    """
    root = workspace.root
    require_outputs(workspace, "calibrate", stage="calibrate")
    alone = (WORKSPACE_FILE, f"calibrate/{MANIFEST}")
    read = {path: (root / path).read_bytes() for path in alone}
    files = [bundle_file(path, data) for path, data in read.items()]
    sources: dict[str, Source] = dict(read)
    for parts, stage in ((("export",), "export"), (("quantize", name), "quantize")):
        folder, manifest = require_outputs(workspace, *parts, stage=stage)
        found, paths = stage_files(root, folder, manifest)
        files += found
        sources |= paths
    group = TargetGroup(
        name="reference", kind="reference", folder="export", precision="FP32", files=tuple(files)
    )
    return GroupSources(group, sources)


def stage_files(
    root: Path, folder: Path, manifest: Manifest
) -> tuple[tuple[BundleFile, ...], dict[str, Source]]:
    """Return the files of a stage's folder, by their paths in the workspace, and the manifest."""
    files: list[BundleFile] = []
    sources: dict[str, Source] = {}
    for name in sorted((*manifest.outputs, MANIFEST)):
        path = folder / name
        place = path.relative_to(root).as_posix()
        digest = manifest.outputs.get(name) or sha256_file(path)
        files.append(BundleFile(path=place, sha256=digest, bytes=path.stat().st_size))
        sources[place] = path
    return tuple(files), sources


def bundle_file(path: str, data: bytes) -> BundleFile:
    return BundleFile(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
