"""Stage 1: official checkpoint -> ONNX graphs, sites.json and, of a generator, generator.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ExportError
from ..export.shape import DYNAMIC, GraphForm
from ..families.custom.export import MODEL as OWN
from ..families.custom.export import export_own_stage
from ..families.gsq.export import export_gsq
from ..families.shared.isolated_export import export_generator, family
from ..families.shared.job import PARITY_IMAGES, PARITY_SIZE, ExportJob, mark_norms, parity_results
from ..graph.sites import SITES_VERSION, SiteMap
from ..packages import require_packages
from ..samples.images import SKIMAGE_PREFIX, open_source
from ..workspace.artifacts import Manifest, Workspace, encode_json, sha256_file
from ..workspace.stage import Reporter, StageResult, package_versions, run_stage

if TYPE_CHECKING:
    from ..export.checkpoint.read import Weights
    from ..families.zoo_entries import ZooEntry


def export_any(
    workspace: Workspace,
    name: str,
    checkpoint: str | None,
    images: str,
    graphs: Sequence[Path],
    reporter: Reporter,
    form: GraphForm = DYNAMIC,
    weights: Weights | None = None,
) -> StageResult:
    """Export a known model from its checkpoint, or a user's own graphs.

    Raises:
        ExportError: graphs beside a known model, or a checkpoint beside graphs.
    """
    if checkpoint is not None and not checkpoint.strip():
        raise ExportError("is empty", where="--checkpoint", do="name a file, or leave it out")
    if name == OWN:
        for option, value in (("--checkpoint", checkpoint), ("--weights", weights)):
            if value is not None:
                raise ExportError(
                    "graphs of your own have no checkpoint", where=option, do="leave it out"
                )
        require_dynamic(name, form)
        return export_own_stage(workspace, graphs, reporter)
    if graphs:
        raise ExportError(
            f"{name} is exported from its checkpoint, not from graphs",
            where="--graph",
            do=f"name the model {OWN} for graphs of your own",
        )
    return export_stage(workspace, name, checkpoint, images, reporter, form, weights)


def export_stage(
    workspace: Workspace,
    name: str,
    checkpoint: str | None,
    images: str,
    reporter: Reporter,
    form: GraphForm = DYNAMIC,
    weights: Weights | None = None,
) -> StageResult:
    """Export `name` from `checkpoint` (default: the weights this package ships for it).

    `images` is the source of the real images that ONNX Runtime is compared with PyTorch on.
    `form` is how a generator's graphs are made. `weights` is as in `ExportJob`.

    Raises:
        ExportError: the checkpoint does not fit or the model has no such form, or its graphs
            differ from PyTorch.
    """
    from ..export.checkpoint.resolve import resolve_checkpoint
    from ..families.zoo import find_model, shipped_checkpoint

    entry = find_model(name)
    require_packages("export", *(["report"] if images.startswith(SKIMAGE_PREFIX) else []))
    if entry.generates:
        family(entry.family).check_form(name, form)
    else:
        require_dynamic(name, form)
    spec = checkpoint or shipped_checkpoint(entry)
    if entry.config is None:
        require_one_size(entry, Path(spec))
    job = ExportJob(
        entry=entry,
        spec=spec,
        paths=tuple(resolve_checkpoint(spec, entry.files, entry.elsewhere)),
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
    export = TOKENIZERS.get(entry.family, export_generator)
    return run_stage(workspace.folder("export"), wanted, lambda folder: export(job, folder))


def require_dynamic(name: str, form: GraphForm) -> None:
    if form != DYNAMIC:
        raise ExportError(
            "is no generator: it has no fixed batch and no KV caches",
            where=name,
            do="leave out --static-batch and --kv-type",
        )


def changed(form: GraphForm) -> dict[str, Any]:
    """What differs from the usual form."""
    given = asdict(form)
    return {name: value for name, value in given.items() if value != getattr(DYNAMIC, name)}


def require_one_size(entry: ZooEntry, folder: Path) -> None:
    """A family's name alone does not choose between the sizes that a folder holds.

    Raises:
        ExportError: there are several; names them.
    """
    from ..families.zoo_entries import VAR_SNAPSHOTS

    sets = [names for names in entry.files if names not in VAR_SNAPSHOTS]
    held = (s[0] for s in sets if all((folder / name).is_file() for name in s))
    found = {str(Path(name).with_suffix("")) for name in held}
    if len(found) > 1:
        raise ExportError(
            f"holds several checkpoints: {', '.join(sorted(found))}",
            where=str(folder),
            do="name the variant instead of the family",
        )


def export_cosmos(job: ExportJob, folder: Path) -> dict[str, Any]:
    """Write a Cosmos tokenizer's two graphs; returns the manifest's results."""
    from ..export.checkpoint.config_json import read_beside
    from ..families.cosmos.checkpoint import load_cosmos
    from ..families.cosmos.config import CosmosConfig, CosmosJson
    from ..families.cosmos.parity import compute_cosmos_references
    from ..families.cosmos.write import describe, export_tokenizer
    from ..families.shared.vq_parity import check_vq_parity
    from ..families.zoo import check_config

    job.progress("reading the checkpoint", 0)
    known = job.entry.config if isinstance(job.entry.config, CosmosConfig) else None
    told = read_beside(job.paths[0].parent, CosmosJson)
    model = load_cosmos(job.read(), job.spec, told, known)
    check_config(job.entry, model.config, job.spec)
    job.progress("exporting", 1)
    mark_norms(job, model, PARITY_SIZE)
    sites = export_tokenizer(model, folder, job.entry.name)
    (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites)))
    job.progress("comparing with PyTorch", 2)
    references = compute_cosmos_references(model, job.pictures(PARITY_SIZE))
    parity = check_vq_parity(folder, references)
    job.progress("comparing with PyTorch", 3)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokenizer": describe(model.config),
        "parity": parity_results(*parity),
        "parity_images": list(job.image_names),
    }


# A family that is not here generates.
TOKENIZERS: dict[str, Callable[[ExportJob, Path], dict[str, Any]]] = {
    "cosmos": export_cosmos,
    "gsq": export_gsq,
}
