"""Stage 1: official checkpoint -> ONNX graphs, sites.json and, of a generator, generator.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..artifacts import Manifest, SiteMap, Workspace, encode_json, sha256_file
from ..errors import ExportError
from ..runtime.image_sources import ImageSource, open_source
from ..runtime.images import center_crop, to_model
from .common import Reporter, StageResult, package_versions, run_stage

PARITY_IMAGES = 2
PARITY_SIZE = 256
PARITY_LABEL = 207
GENERATOR_DEFAULTS = {"cfg": 1.5, "top_k": 900, "top_p": 0.96}


def export_stage(
    workspace: Workspace, name: str, checkpoint: str | None, images: str, reporter: Reporter
) -> StageResult:
    """Export `name` from `checkpoint` (default: the weights this package ships for it).

    `images` is the source of the real images that ONNX Runtime is compared with PyTorch on.
    """
    from ..export.checkpoint import resolve_checkpoint
    from ..export.zoo import find_model, shipped_checkpoint

    entry = find_model(name)
    spec = checkpoint or shipped_checkpoint(entry)
    paths = resolve_checkpoint(spec, entry.files)
    source = open_source(images)
    job = Job(name, spec, paths, source, reporter)
    wanted = Manifest(
        stage="export",
        inputs={p.name: sha256_file(p) for p in (*job.inputs(), *source.files[:PARITY_IMAGES])},
        options={"model": name},
        versions=package_versions("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
    )
    work = {"cosmos": export_cosmos, "var": export_var}[entry.family]
    return run_stage(workspace.folder("export"), wanted, lambda folder: work(job, folder))
