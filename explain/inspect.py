"""Say what a file or folder is: a workspace, a stage's folder, a bundle, a graph, an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..engines.analysis import analyze_files
from ..engines.verdicts import TARGETS
from ..errors import WorkspaceError, few
from ..graph.sites import Verdict
from ..graph.summary import GraphSummary, summarize_graph
from ..runtime.bundle.open import is_bundle
from ..runtime.bundle.plan_header import read_plan_header
from ..runtime.bundle.reader import Bundle
from ..runtime.bundle.sizes import builders, image_sizes
from ..runtime.packed.layout import INDEX_FILE, WEIGHTS_FILE
from ..validate.formats import size
from ..workspace.facts import model_name
from ..workspace.files import decode_json
from ..workspace.lead import export_of
from ..workspace.manifest import MANIFEST, Manifest

SIZES = ("bytes", "files", "groups")  # facts that are counts of bytes
WHAT_TO_NAME = "name a workspace, a stage's folder, a bundle, an ONNX graph or an engine"
WRAPPER = "the model by which ONNX Runtime opens the engine beside it"
NAMES = {"bytes": "size"}
OPTIONAL = ("image_sizes", "builders")  # facts that not every bundle has
PARTED = ("options", "files", "groups", "verdicts")  # facts with a line for each part


class InspectedWorkspace(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="workspace"
):
    """The model of a workspace, and the stages whose output it holds, by folder."""

    model: str | None
    stages: tuple[str, ...]


class InspectedStage(msgspec.Struct, frozen=True, kw_only=True):
    """Facts from the manifest of a stage's folder, and the bytes of its files."""

    kind: str
    key: str
    options: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, int]


class RefusedGraph(msgspec.Struct, frozen=True, kw_only=True):
    """Why a file cannot be exported at all."""

    refused: str


class InspectedGraph(GraphSummary, frozen=True, kw_only=True, tag_field="kind", tag="ONNX graph"):
    """A graph, with its nodes by target and verdict as `analyze` counts them.

    What a build takes or makes has no verdicts, and ``state`` says what it is.
    """

    verdicts: dict[str, dict[Verdict, int]] | RefusedGraph | None
    state: str | None = None


class InspectedEngine(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="TensorRT engine"
):
    """An engine file, the version of what built it, and the GPUs it is for, where it says them."""

    bytes: int
    builder: str
    targets: tuple[str, ...]


class InspectedBundle(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="bundle"):
    """A bundle: its target groups by their bytes, and the keys that its signatures name.

    The signatures are not verified; that is what `verify` does.
    """

    name: str
    model: str
    digest: str
    signatures: tuple[str, ...]
    groups: dict[str, int]
    documents: tuple[str, ...]
    image_sizes: dict[str, int]
    builders: dict[str, str]


Inspected = InspectedWorkspace | InspectedStage | InspectedGraph | InspectedEngine | InspectedBundle


def inspect_path(path: Path) -> Inspected:
    """Return the key facts of a workspace, a stage folder, a bundle, a graph or an engine file.

    Raises:
        WorkspaceError: it is none of these.
    """
    if not path.exists():
        raise WorkspaceError("no such file or folder", where=str(path), do=WHAT_TO_NAME)
    if path.is_dir():
        return inspect_folder(path)
    if path.suffix == ".onnx":
        return inspect_graph(path)
    if is_bundle(path):
        with Bundle(path) as bundle:
            return InspectedBundle(
                name=bundle.facts.name,
                model=bundle.facts.model,
                digest=bundle.digest,
                signatures=tuple(signature.hint for signature in bundle.signatures),
                groups={group.name: group.bytes for group in bundle.facts.groups},
                documents=tuple(file.path for file in bundle.facts.documents),
                image_sizes=image_sizes(bundle),
                builders=builders(bundle.facts),
            )
    header = read_plan_header(path)
    if header is None:
        what = "is nothing that arvg-trt writes"
        raise WorkspaceError(what, where=str(path), do=WHAT_TO_NAME)
    return InspectedEngine(
        bytes=header.bytes, builder=header.version or "unknown", targets=header.targets
    )


def inspected_lines(found: Inspected) -> list[str]:
    """Return the facts for people: a line each, what has parts with a line for each part."""
    lines = []
    for key, value in msgspec.to_builtins(found).items():
        if (key in ("verdicts", "state") and value is None) or (key in OPTIONAL and not value):
            continue
        if key in PARTED and isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {part}: {fact_text(key, each)}" for part, each in value.items()]
        else:
            lines.append(f"{NAMES.get(key, key)}: {fact_text(key, value)}")
    return lines


def fact_text(key: str, value: Any) -> str:
    """Return a fact as people write it; sizes have a unit."""
    if key in SIZES and isinstance(value, int):
        return size(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {fact_text('', each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        named = [fact_text("", each) for each in value]
        return (few(named) if key == "options" else ", ".join(named)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not set" if value is None or value == "" else str(value)


def inspect_folder(path: Path) -> InspectedWorkspace | InspectedStage:
    """Return what a workspace or the folder of a stage holds."""
    if (path / "workspace.json").is_file():
        stages = sorted(p.parent.relative_to(path) for p in path.glob(f"**/{MANIFEST}"))
        exported = export_of(path)
        return InspectedWorkspace(
            model=None if exported is None else model_name(exported),
            stages=tuple(str(stage) for stage in stages if not hidden(stage)),
        )
    manifest = decode_json(path / MANIFEST, Manifest, do="name a workspace or a stage's folder")
    return InspectedStage(
        kind=f"output of {manifest.stage}",
        key=manifest.key(),
        options=manifest.options,
        versions=manifest.versions,
        files={
            name: (path / name).stat().st_size
            for name in (*manifest.outputs, INDEX_FILE, WEIGHTS_FILE)
            if (path / name).exists()
        },
    )


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def inspect_graph(path: Path) -> InspectedGraph:
    """Return the key facts of a graph, and what would become of its nodes."""
    summary = summarize_graph(path)
    facts = msgspec.structs.asdict(summary)
    if "EPContext" in summary.nodes:
        return InspectedGraph(**facts, verdicts=None, state=WRAPPER)
    (found,) = analyze_files([path], TARGETS)
    if found.refused is None:
        return InspectedGraph(**facts, verdicts=found.counts)
    state = state_of(path, summary)
    verdicts = None if state else RefusedGraph(refused=found.refused)
    return InspectedGraph(**facts, verdicts=verdicts, state=state)


def state_of(path: Path, summary: GraphSummary) -> str | None:
    """Return what a graph is that cannot be exported and need not be; None for any other."""
    from ..families.custom.quantized import INTEGER_OPS, WEIGHT_ONLY_OPS, ZERO_POINTS

    if {*ZERO_POINTS, *INTEGER_OPS, *WEIGHT_ONLY_OPS} & summary.nodes.keys():
        return "quantized already, as engines are built from or are"
    if not (path.parent / MANIFEST).is_file():
        return None
    made = decode_json(path.parent / MANIFEST, Manifest, do="name a graph by itself")
    own = made.stage in ("build", "bundle") and path.name in made.outputs
    return "in half precision, as engines are built from" if own else None
