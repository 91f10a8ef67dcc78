"""Write what a person reads of a bundle, and its bill of materials, from facts of the stages."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ...recipe.file import names_alone
from ...runtime.bundle.layout import TargetGroup
from ...runtime.sessions.placement import TITLES
from ...workspace.facts import ModelKind
from ...workspace.files import encode_json
from ...workspace.manifest import MANIFEST, Manifest
from ...workspace.verify import read_manifest
from ...workspace.workspace import Workspace
from .contents import GroupSources, folders_of_engines

CARD, BILL, STAGES, LICENSES = "README.md", "sbom.cdx.json", "stages.json", "licenses"
BYTES_OF_MB = 1e6
# What a model is for, where that is known: custom graphs are the user's own.
TASKS: Mapping[ModelKind, str] = {
    "generator": "image generation",
    "tokenizer": "image tokenization",
    "custom": "",
}
# The commands that take a bundle in place of a folder.
COMMANDS: Mapping[ModelKind, tuple[str, ...]] = {
    "generator": ("generate",),
    "tokenizer": ("encode", "decode"),
    "custom": (),
}
KIND_TEXT = {
    **TITLES,
    "onnxruntime": "ONNX Runtime on any CPU",
    "openvino": "OpenVINO on the CPU",
    "kit": "ONNX graphs to build an engine from on a device",
    "reference": "FP32 and Q/DQ graphs that `validate` compares with",
}
PACKED_TEXT = (
    "Weights of graphs are packed in their own bits. The commands expand them once, to the same "
    "bytes as before; `arvg-trt unpack` does, too."
)


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


def model_card(
    model: str,
    name: str,
    kind: ModelKind,
    groups: Sequence[GroupSources],
    figures: Sequence[str],
    licenses: Sequence[str],
) -> str:
    """Return a README in Markdown, headed as model hubs read it.

    `figures` are lines about its accuracy; `licenses` the paths of the weights' licences.
    """
    rows = [
        f"| {made.group.name} | {f'{KIND_TEXT[made.group.kind]} {made.group.version}'.strip()} "
        f"| {' '.join(made.group.targets) or 'any'} | {made.group.precision or '-'} "
        f"| {made.group.bytes / BYTES_OF_MB:.1f} |"
        for made in groups
    ]
    measured = [f"- {line}" for line in figures] or ["It was not validated."]
    validates = any(made.group.kind == "reference" for made in groups)
    commands = (*COMMANDS[kind], *(("validate",) if validates else ()), "unpack")
    terms = [f"- [{path}]({path})" for path in licenses] or [
        "None is in this bundle: ask who made it under which terms the weights may be used."
    ]
    return "\n".join(
        [
            "---",
            "library_name: arvg-trt",
            "license: other",
            f"tags: [arvg-trt, quantized, {model}]",
            "---",
            f"# {model}, quantized as {name}",
            "",
            "Engines and graphs in one file. `arvg-trt verify FILE` checks it and says what of it "
            "opens on a machine.",
            f"Commands that take it: {', '.join(f'`{command}`' for command in commands)}.",
            "",
            "## What it holds",
            "",
            "| group | runs on | targets | precision | MB |",
            "| --- | --- | --- | --- | --- |",
            *rows,
            "",
            *([PACKED_TEXT, ""] if any(made.group.is_packed for made in groups) else ()),
            "## Accuracy against FP32",
            "",
            *measured,
            "",
            "## Licences of the weights",
            "",
            *terms,
            "",
            f"`{STAGES}` has the options, versions and inputs of every stage; `{BILL}` is a "
            "CycloneDX bill of materials.",
            "",
        ]
    )


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
