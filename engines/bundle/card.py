"""Write the page of a bundle that a person reads, headed as model hubs read it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from ...runtime.bundle.layout import TargetGroup
from ...runtime.sessions.placement import TITLES
from ...workspace.facts import ModelKind
from .contents import GroupSources
from .documents import BILL, STAGES

CARD, LICENSES = "README.md", "licenses"
BYTES_OF_MB = 1e6
OF_A_MACHINE = ("speedup", "latency_ms")
# Tasks by the names of Hugging Face's list, which has none of classes to images, nor of tokens.
HUB_TASKS: Mapping[ModelKind, str] = {
    "generator": "unconditional-image-generation",
    "tokenizer": "image-to-image",
    "custom": "other",
}
# The commands that take a bundle in place of a folder.
COMMANDS: Mapping[ModelKind, tuple[str, ...]] = {
    "generator": ("generate",),
    "tokenizer": ("encode", "decode"),
    "custom": (),
}
# A version stands behind the first word or words, which name what has it.
KIND_TEXT = {
    **{kind: f"{title}{{}}" for kind, title in TITLES.items()},
    "onnxruntime": "ONNX Runtime{}, on any CPU",
    "openvino": "OpenVINO{}, on the CPU",
    "kit": "ONNX graphs to build an engine from on a device",
    "reference": "FP32 and Q/DQ graphs that `validate` compares with",
}
PACKED_TEXT = (
    "Weights of graphs are packed in their own bits. The commands expand them once, to the same "
    "bytes as before; `arvg-trt unpack` does, too."
)


def model_card(
    model: str,
    name: str,
    kind: ModelKind,
    groups: Sequence[GroupSources],
    figures: Sequence[str],
    metrics: Mapping[str, float],
    licenses: Sequence[str],
) -> str:
    """Return a README in Markdown, headed as Hugging Face and other hubs read it.

    `figures` are lines about its accuracy, `metrics` those of its validation by the names that
    gates read; `licenses` the paths of the weights' licences.
    """
    rows = [
        f"| {made.group.name} | {runs_on(made.group)} "
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
            f"tags: [arvg-trt, quantized, onnx, {json.dumps(model)}]",
            *model_index(f"{model}/{name}", kind, metrics),
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


def runs_on(group: TargetGroup) -> str:
    """Return what runs a group, with the version that built it, if one did."""
    return KIND_TEXT[group.kind].format(f" {group.version}" if group.version else "")


def model_index(title: str, kind: ModelKind, metrics: Mapping[str, float]) -> list[str]:
    """Return the lines of `model-index`, from which hubs show figures; none without metrics.

    Figures are those of the candidate that is shipped, whose names have no dot; speeds are of the
    machine that took them, and left out.
    """
    plain = {n: value for n, value in metrics.items() if "." not in n and n not in OF_A_MACHINE}
    rows = [
        f"  - {{type: {name}, value: {value!r}}}"
        for name, value in sorted(plain.items())
        if math.isfinite(value)
    ]
    if not rows:
        return []
    return [
        "model-index:",
        f"- name: {json.dumps(title)}",
        "  results:",
        "  - task:",
        f"      type: {HUB_TASKS[kind]}",
        "    dataset:",
        "      type: held-out",
        "      name: samples that it was not calibrated on",
        "    metrics:",
        *(f"  {row}" for row in rows),
    ]
