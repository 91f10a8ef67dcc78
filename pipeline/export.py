"""Stage 1: official checkpoint -> encoder.onnx, decoder.onnx, sites.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..artifacts import Manifest, SiteMap, Workspace, encode_json, sha256_file
from ..runtime.image_sources import open_source
from ..runtime.images import center_crop, to_model
from .common import Reporter, StageResult, package_versions, run_stage

PARITY_IMAGES = 2
PARITY_SIZE = 256


def export_stage(
    workspace: Workspace, name: str, checkpoint: str | None, images: str, reporter: Reporter
) -> StageResult:
    """Export `name` from `checkpoint` (default: the weights this package ships for it).

    `images` is the source of the real images that ONNX Runtime is compared with PyTorch on.
    """
    from ..export.checkpoint import read_all, resolve_checkpoint
    from ..export.onnx_export import check_parity, describe, export_tokenizer
    from ..export.tokenizers.cosmos_checkpoint import load_cosmos
    from ..export.zoo import check_config, find_model, shipped_checkpoint

    entry = find_model(name)
    spec = checkpoint or shipped_checkpoint(entry)
    paths = resolve_checkpoint(spec, entry.files)
    source = open_source(images)
    chosen = source.files[:PARITY_IMAGES]
    wanted = Manifest(
        stage="export",
        inputs={p.name: sha256_file(p) for p in (*paths, *chosen)},
        options={"model": name},
        versions=package_versions("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
    )

    def work(folder: Path) -> dict[str, object]:
        reporter.progress("reading the checkpoint", 0, 3)
        model = load_cosmos(read_all(paths), spec)
        check_config(entry, model.config, spec)
        reporter.progress("exporting", 1, 3)
        sites = export_tokenizer(model, folder, name)
        (folder / "sites.json").write_bytes(encode_json(SiteMap(sites=sites)))
        reporter.progress("comparing with PyTorch", 2, 3)
        pictures = [to_model(center_crop(source.load(i), PARITY_SIZE)) for i in range(len(chosen))]
        parity = check_parity(model, folder, pictures)
        reporter.progress("comparing with PyTorch", 3, 3)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokenizer": describe(model.config),
            "parity": asdict(parity),
            "parity_images": [p.name for p in chosen],
        }

    return run_stage(workspace.folder("export"), wanted, work)
