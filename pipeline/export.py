"""Stage 1: official checkpoint -> ONNX graphs, sites.json and, of a generator, generator.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError, bounded
from ..export.shape import DYNAMIC, ExportShape
from ..extras import require_packages
from ..families.base import Exporter, FileSets, Variant
from ..families.custom.export import graph_names
from ..families.shared.job import PARITY_IMAGES, PARITY_SIZE, ExportJob
from ..families.variants import find_model, shipped_checkpoint
from ..graph.sites import SITES_VERSION
from ..runtime.families import built_in_families, find_family
from ..samples.images import SKIMAGE_PREFIX, open_source
from ..workspace.files import sha256_file
from ..workspace.manifest import Manifest
from ..workspace.replaced import require_same_model
from ..workspace.stage import PreparedStage, Reporter, StageResult, in_stage, package_versions
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    from ..export.checkpoint.wrappers import Weights
    from ..families.custom.export import Judges

# An export compares its graphs on pictures of its own: others to validate on change no export.
PARITY_PICTURES = "skimage"


def export_any(
    workspace: Workspace,
    name: str,
    checkpoint: str | None,
    images: str,
    graphs: Sequence[Path],
    reporter: Reporter,
    form: ExportShape = DYNAMIC,
    weights: Weights | None = None,
    title: str | None = None,
    *,
    force: bool = False,
) -> StageResult:
    """Export a known model from its checkpoint, or a user's own graphs, called `title`.

    Raises:
        ExportError: graphs beside a known model, or a checkpoint beside graphs.
        WorkspaceError: the workspace has later stages of another model; not with `force`.
    """
    if not force:
        refuse_other_model(workspace, name, graphs)
    return prepare_any(
        workspace, name, checkpoint, images, graphs, reporter, form, weights, title=title
    ).run()


def prepare_any(
    workspace: Workspace,
    name: str,
    checkpoint: str | None,
    images: str,
    graphs: Sequence[Path],
    reporter: Reporter,
    form: ExportShape = DYNAMIC,
    weights: Weights | None = None,
    *,
    title: str | None = None,
    cached: bool = False,
) -> PreparedStage:
    """Return what `export_any` would do; with `cached` no checkpoint is fetched for that.

    Raises:
        ExportError: graphs beside a known model, or a checkpoint beside graphs.
    """
    reporter = in_stage(reporter, "export")
    if checkpoint is not None and not checkpoint.strip():
        raise ExportError("is empty", where="--checkpoint", do="name a file, or leave it out")
    family = find_family(find_model(name).family)
    if family.source == "graphs":
        for option, value in (("--checkpoint", checkpoint), ("--weights", weights)):
            if value is not None:
                raise ExportError(
                    "graphs of your own have no checkpoint", where=option, do="leave it out"
                )
        if form != DYNAMIC:
            raise ExportError(
                "graphs of your own are taken as they are",
                where=name,
                do="leave out --static-batch and --kv-type",
            )
        exporter = family.load_exporter()
        prepared: PreparedStage = exporter(workspace, graphs, reporter, judges(), title)
        return prepared
    require_no_title(name, title)
    if graphs:
        (own,) = (m.name for f in built_in_families() if f.source == "graphs" for m in f.models)
        raise ExportError(
            f"{name} is exported from its checkpoint, not from graphs",
            where="--graph",
            do=f"name the model {own} for graphs of your own",
        )
    return prepare_export(
        workspace, name, checkpoint, images, reporter, form, weights, cached=cached
    )


def refuse_other_model(workspace: Workspace, name: str, graphs: Sequence[Path]) -> None:
    """Raise WorkspaceError where later stages are of another model than is to be exported."""
    entry = find_model(name)
    own = find_family(entry.family).source == "graphs"
    require_same_model(workspace, entry.name, graph_names(graphs) if own else ())


def require_no_title(name: str, title: str | None) -> None:
    """Raise ExportError for the title of a model that has a name."""
    if title is not None:
        do = f"leave it out: {name} is called so"
        raise ExportError("is for graphs of your own", where="title", do=do)


def judges() -> Judges:
    """Return what the stages behind the export judge a user's own graphs by."""
    from ..engines.verdicts import TARGETS, node_verdicts, resolve_targets
    from ..families.custom.export import Judges
    from ..quantize.fold_check import MAPPED_BYTES, failing_folds, on_arrays, tried_folds

    targets = resolve_targets(TARGETS)
    return Judges(
        failing_folds=lambda folder, fed, sites: failing_folds(
            folder, on_arrays(folder, fed), tried_folds(sites), MAPPED_BYTES
        ),
        verdicts=lambda graph, name, sites: node_verdicts(graph, name, sites, targets),
    )


def prepare_export(
    workspace: Workspace,
    name: str,
    checkpoint: str | None,
    images: str,
    reporter: Reporter,
    form: ExportShape = DYNAMIC,
    weights: Weights | None = None,
    *,
    cached: bool = False,
) -> PreparedStage:
    """Prepare the export of `name` from `checkpoint`, or from the weights that ship with it.

    `images` is the source of the real images that ONNX Runtime is compared with PyTorch on.
    `form` is how a generator's graphs are made. `weights` is as in `ExportJob`.

    Raises:
        ExportError: the checkpoint does not fit or the model has no such form, or its graphs
            differ from PyTorch.
    """
    from ..export.checkpoint.resolve import resolve_checkpoint

    entry = find_model(name)
    family = find_family(entry.family)
    require_packages("export", *(["report"] if images.startswith(SKIMAGE_PREFIX) else []))
    exporter: Exporter = family.load_exporter()
    exporter.check_shape(name, form)
    spec = checkpoint or shipped_checkpoint(entry)
    if entry.config is None:
        require_one_size(entry, family.snapshots, Path(spec))
    found = (entry.files, entry.elsewhere, entry.published)
    paths = resolve_checkpoint(spec, *found, cached=cached, progress=reporter.progress)
    job = ExportJob(
        entry=entry,
        spec=spec,
        paths=tuple(paths),
        source=open_source(images, size=PARITY_SIZE, most=PARITY_IMAGES),
        reporter=reporter,
        form=form,
        weights=weights,
    )
    wanted = Manifest(
        stage="export",
        inputs={p.name: sha256_file(p) for p in job.inputs()}
        | {n: sha256_file(p) for n, p in zip(job.image_names, job.images, strict=True)},
        options={"model": name, **changed(form), **({"weights": weights} if weights else {})},
        versions=package_versions("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
        | {"sites.json": SITES_VERSION},
    )
    return PreparedStage(
        workspace.folder("export"), wanted, lambda folder: exporter.export(job, folder)
    )


def changed(form: ExportShape) -> dict[str, Any]:
    """Return the fields of a form that differ from the usual one, for the manifest."""
    given = asdict(form)
    return {name: value for name, value in given.items() if value != getattr(DYNAMIC, name)}


def require_one_size(entry: Variant, snapshots: FileSets, folder: Path) -> None:
    """Check that a folder holds one size, where a family's name alone does not choose.

    Raises:
        ExportError: there are several; names them.
    """
    sets = [names for names in entry.files if names not in snapshots]
    held = (s[0] for s in sets if all((folder / name).is_file() for name in s))
    found = {str(Path(name).with_suffix("")) for name in held}
    if len(found) > 1:
        raise ExportError(
            f"holds several checkpoints: {bounded(sorted(found), 'checkpoints')}",
            where=str(folder),
            do="name the variant instead of the family",
        )
