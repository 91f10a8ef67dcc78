"""Write how a bundle was made and its bill of materials, from facts of the stages."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...recipe.file import names_alone
from ...runtime.bundle.layout import TargetGroup
from ...workspace.facts import ModelKind
from ...workspace.files import encode_json
from ...workspace.manifest import MANIFEST, Manifest
from ...workspace.verify import read_manifest
from ...workspace.workspace import Workspace
from .contents import folders_of_engines

BILL, STAGES = "sbom.cdx.json", "stages.json"
# What a model is for, where that is known: custom graphs are the user's own.
TASKS: Mapping[ModelKind, str] = {
    "generator": "image generation",
    "tokenizer": "image tokenization",
    "custom": "",
}


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Say how a stage was run: with which options, by which versions, from which inputs."""

    folder: str
    stage: str
    options: dict[str, Any]
    versions: dict[str, str]
    inputs: dict[str, str]


def stage_records(workspace: Workspace, name: str) -> tuple[StageRecord, ...]:
    """Return a record of each stage that a quantization comes from, in the order they ran."""
    root = workspace.root
    engines = folders_of_engines(root, name)
    folders = [root / "export", root / "calibrate", root / "quantize" / name, *engines]
    records = []
    for folder in (*folders, root / "validate" / name):
        if (folder / MANIFEST).is_file():
            made: Manifest = read_manifest(folder)
            records.append(
                StageRecord(
                    folder=folder.relative_to(root).as_posix(),
                    stage=made.stage,
                    options=names_alone(made.options),
                    versions=made.versions,
                    inputs=made.inputs,
                )
            )
    return tuple(records)


def bill_of_materials(
    model: str,
    name: str,
    kind: ModelKind,
    tool: str,
    groups: Sequence[TargetGroup],
    records: Sequence[StageRecord],
    metrics: Mapping[str, float],
) -> bytes:
    """Return a CycloneDX 1.6 bill: the model, its files by sha256, and the libraries behind it."""
    versions = {item for record in records for item in record.versions.items()}
    files: list[dict[str, Any]] = [
        {
            "type": "file",
            "bom-ref": file.path,
            "name": file.path,
            "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        }
        for group in groups
        for file in group.files
    ]
    libraries: list[dict[str, Any]] = [
        {
            "type": "library",
            "bom-ref": f"library/{library}@{found}",
            "name": library,
            "version": found,
        }
        for library, found in sorted(versions)
        if library != "arvg-trt"
    ]
    parameters = {"task": TASKS[kind], "architectureFamily": "" if kind == "custom" else model}
    card = {
        "modelParameters": {key: value for key, value in parameters.items() if value},
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {"type": metric, "value": f"{value:.6g}"} for metric, value in metrics.items()
            ]
        },
    }
    listed = "".join(f"{f.path} {f.sha256}\n" for group in groups for f in group.files)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, listed)}",
        "version": 1,
        "metadata": {
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "arvg-trt",
                        "version": tool.rpartition(" ")[2],
                    }
                ]
            },
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "name": f"{model}/{name}",
                "modelCard": card,
            },
        },
        "components": [*files, *libraries],
        "dependencies": [
            {"ref": "model", "dependsOn": [part["bom-ref"] for part in (*files, *libraries)]}
        ],
    }
    return encode_json(bill)
