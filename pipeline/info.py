"""Commands that only look: models, comparisons, what an artifact is, what this machine can do."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..engines.analysis import analyze_files
from ..engines.verdicts import TARGETS
from ..errors import ArvgError, IntegrityError, WorkspaceError
from ..graph.sites import Verdict
from ..graph.summary import GraphSummary, summarize_graph
from ..runtime.bundle.open import is_bundle
from ..runtime.bundle.plan_header import read_plan_header
from ..runtime.bundle.reader import Bundle
from ..runtime.bundle.trust import required_keys
from ..runtime.devices import RTX_PACKAGES, Device, this_device
from ..runtime.family import HubFile
from ..runtime.sessions.placement import CUDA, TENSORRT, TENSORRT_RTX
from ..runtime.sessions.providers import provider_problem
from ..runtime.trt_compat import load_builder
from ..workspace.files import atomic_write, decode_json
from ..workspace.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from ..validate.report.compare import Comparison


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is known by name; ``files`` are the sets that make a complete checkpoint.

    ``published`` are those that are fetched, ``download_bytes`` in all where every size is known.
    """

    name: str
    family: str
    parameters: int
    graphs: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    checkpoint: str
    published: tuple[HubFile, ...] = ()
    download_bytes: int | None = None


def model_rows() -> list[ModelRow]:
    """Return the models that are known by name, and where their checkpoints are."""
    from ..families.variants import all_variants, checkpoint_text

    return [
        ModelRow(
            name=entry.name,
            family=entry.family,
            parameters=entry.parameters,
            graphs=entry.graphs,
            files=entry.files,
            checkpoint=checkpoint_text(entry),
            published=entry.published,
            download_bytes=entry.download_bytes,
        )
        for entry in all_variants()
    ]


def compare_reports(paths: Sequence[Path], html: Path | None, allow_different: bool) -> Comparison:
    """Compare reports with the first one, and write a page; folders stand for their report.json.

    Raises:
        WorkspaceError: fewer than two, or one that cannot be read.
    """
    from ..validate.report.compare import compare, comparison_html
    from ..validate.report.schema import load_report

    if len(paths) < 2:
        raise WorkspaceError("one report cannot be compared", do="name two or more")
    files = [p / "report.json" if p.is_dir() else p for p in paths]
    labelled = [(str(path), load_report(path)) for path in files]
    found = compare(labelled, allow_different=allow_different)
    if html is not None:
        atomic_write(html, comparison_html(found).encode())
    return found


class InspectedWorkspace(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="workspace"
):
    """The stages whose output a workspace holds, by folder."""

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
    """A graph, with its nodes by target and verdict as `analyze` counts them."""

    verdicts: dict[str, dict[Verdict, int]] | RefusedGraph


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


Inspected = InspectedWorkspace | InspectedStage | InspectedGraph | InspectedEngine | InspectedBundle


def inspect_path(path: Path) -> Inspected:
    """Return the key facts of a workspace, a stage folder, a bundle, a graph or an engine file.

    Raises:
        WorkspaceError: it is none of these.
    """
    if not path.exists():
        raise WorkspaceError("no such file or folder", where=str(path))
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
            )
    header = read_plan_header(path)
    if header is None:
        raise WorkspaceError("is nothing that arvg-trt writes", where=str(path))
    return InspectedEngine(
        bytes=header.bytes, builder=header.version or "unknown", targets=header.targets
    )


def inspect_folder(path: Path) -> InspectedWorkspace | InspectedStage:
    """Return what a workspace or the folder of a stage holds."""
    if (path / "workspace.json").is_file():
        stages = sorted(p.parent.relative_to(path) for p in path.glob(f"**/{MANIFEST}"))
        return InspectedWorkspace(stages=tuple(str(s) for s in stages if not hidden(s)))
    manifest = decode_json(path / MANIFEST, Manifest, do="name a workspace or a stage's folder")
    return InspectedStage(
        kind=f"output of {manifest.stage}",
        key=manifest.key(),
        options=manifest.options,
        versions=manifest.versions,
        files={n: (path / n).stat().st_size for n in manifest.outputs if (path / n).exists()},
    )


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def inspect_graph(path: Path) -> InspectedGraph:
    """Return the key facts of a graph, and what would become of its nodes."""
    summary = summarize_graph(path)
    (found,) = analyze_files([path], TARGETS)
    refused = None if found.refused is None else RefusedGraph(refused=found.refused)
    return InspectedGraph(**msgspec.structs.asdict(summary), verdicts=refused or found.counts)


# What runs on a GPU, and by which of ONNX Runtime's providers.
RUNS = {"graphs": CUDA, "RTX engines": TENSORRT_RTX, "TensorRT engines": TENSORRT}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that this machine has or lacks; ``detail`` says which one, or what to do."""

    state: Literal["ok", "missing", "problem"]
    what: str
    detail: str


def doctor_rows() -> list[Check]:
    """Return what this machine can build and run, and what is missing."""
    rows = [row("ok", "python", platform.python_version()), onnxruntime_row()]
    for package, extra, use in (
        ("torch", "export", "export of checkpoints"),
        ("onnx", "export", "export, FP16 copies"),
        ("scikit-image", "report", "SSIM and sample photographs"),
        ("jinja2", "report", "HTML reports"),
    ):
        found = installed(package)
        detail = found or f"for {use}: pip install 'arvg-trt[{extra}]'"
        rows.append(row("ok" if found else "missing", package, detail))
    for backend in ("tensorrt_rtx", "tensorrt"):
        try:
            builder = load_builder(backend)
        except ArvgError as error:
            rows.append(row("missing", backend, str(error)))
        else:
            how = "compiles for named GPUs" if builder.ahead_of_time else "builds for this GPU"
            rows.append(row("ok", backend, f"{builder.version}, {how}"))
    rows += gpu_rows(this_device())
    rows.append(key_row())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows.append(row("ok" if free > 2 else "problem", "free disk here", f"{free:.1f} GiB"))
    return rows


def key_row() -> Check:
    """Say which keys this device requires bundles to be signed by."""
    try:
        names = [name for names in required_keys() for name, _ in names]
    except IntegrityError as error:
        return row("problem", "required keys", str(error))
    return row("ok", "required keys", ", ".join(names) or "none: any bundle is opened")


def gpu_rows(device: Device) -> list[Check]:
    """Return a check for each GPU and for each provider that runs an engine or a graph on it."""
    if not device.gpus:
        detail = f"{device.driver_problem}; the CPU runs graphs and ONNX Runtime's engines"
        provider = device.rtx_provider
        plug_in = provider or "for engines on an RTX GPU: pip install 'arvg-trt[edge-rtx]'"
        return [
            row("missing", "GPU", detail),
            row("ok" if provider else "missing", RTX_PACKAGES[0], plug_in),
        ]
    rows = []
    for gpu in device.gpus:
        memory = gpu.memory_bytes / 2**30
        detail = f"{gpu.name}, {gpu.sm}, {memory:.0f} GiB, driver for CUDA {device.driver}"
        rows.append(row("ok", f"cuda:{gpu.index}", detail))
        for use, provider in RUNS.items():
            problem = provider_problem(provider, gpu)
            what = f"cuda:{gpu.index} {use}"
            if problem is None:
                rows.append(row("ok", what, provider))
            else:
                rows.append(row("missing", what, f"{problem.what}: {problem.do}"))
    return rows


def onnxruntime_row() -> Check:
    """Check for one wheel: those for CPU and GPU overwrite each other's files."""
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed(name)]
    if len(found) == 2:
        return row(
            "problem",
            "onnxruntime",
            "both onnxruntime and onnxruntime-gpu are installed: pip uninstall both, install one",
        )
    if not found:
        return row("missing", "onnxruntime", "pip install onnxruntime")
    return row("ok", found[0], version(found[0]))


def installed(package: str) -> str | None:
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return None


def row(state: Literal["ok", "missing", "problem"], what: str, detail: str) -> Check:
    return Check(state=state, what=what, detail=detail)
