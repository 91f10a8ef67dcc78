"""Write the README of a model repository: what it serves, on what, and what it does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...runtime.bundle.layout import TargetGroup
from ...workspace.facts import ModelKind
from .triton import NOT_SERVED, Repository
from .triton_config import Model, Tensor
from .triton_ensemble import Ensemble

MOST_SHOWN = 6  # inputs or outputs of a model; a step has two for each layer's cache
GENERATOR = """\
## What Triton does not serve

The loop that generates an image is Python of arvg-trt: it samples tokens, keeps the caches of keys
and values, and applies guidance. Triton does not serve it, and no ensemble can: these are the
graphs that the loop runs, a model each, for a loop of your own. `arvg-trt generate` and
`Generator.open` run the whole from a workspace or bundle.
"""
IMAGES = """\
Images are float32 [3, height, width] from -1 to 1, with sides that are multiples of the
tokenizer's stride; what a decoder returns is to be clamped to that range.
"""
CPU = """\
Models of the group `cpu` run at the optimization level BASIC: above it ONNX Runtime fuses the
pairs of quantize and dequantize of some graphs wrongly. On an x86 CPU without VNNI (`lscpu` lists
`avx512_vnni` or `avx_vnni`) INT8 products may saturate, which arvg-trt prevents by an entry of the
session that Triton does not pass on: do not serve them there.
"""
TENSORRT = """\
A plan of TensorRT opens with the version of TensorRT that built it, on the model of GPU that it was
built on: load those of this server's GPU alone, with `--model-control-mode=explicit` and
`--load-model=NAME` for each.
"""


def repository_readme(
    repository: Repository, model: str, name: str, kind: ModelKind, terms: Sequence[str]
) -> str:
    """Return the README in Markdown; `terms` are names of the files with the weights' licences."""
    kinds = {group.kind for group in repository.groups}
    parts = [
        f"# {model}, quantized as {name}, for Triton Inference Server\n",
        "    tritonserver --model-repository=/absolute/path/of/this/folder\n",
        "## Models\n",
        *model_table(repository.models),
        *ensemble_table(repository.ensembles),
        "A first axis `N` is the batch, `?` any size; each `config.pbtxt` lists all.\n",
        *([IMAGES] if kind == "tokenizer" else []),
        "## Groups\n",
        *group_table(repository.groups),
        *([CPU] if "onnxruntime" in kinds else []),
        *([TENSORRT] if "tensorrt" in kinds else []),
        *left_out(repository.left_out),
        *([GENERATOR] if kind == "generator" else []),
        "## Licences of the weights\n",
        "\n".join(f"- [{term}]({term})" for term in terms)
        or "None is here: ask who made it under which terms the weights may be used.",
    ]
    return "\n".join(parts).rstrip() + "\n"


def model_table(models: Iterable[Model]) -> list[str]:
    rows = [
        f"| {m.name} | {m.kind} | {ends(m.inputs, m.max_batch)} | {ends(m.outputs, m.max_batch)} "
        f"| {m.max_batch or '-'} |"
        for m in models
    ]
    head = [
        "| model | backend | takes | returns | largest batch |",
        "| --- | --- | --- | --- | --- |",
    ]
    return [*head, *rows, ""]


def ensemble_table(ensembles: Sequence[Ensemble]) -> list[str]:
    rows = [
        f"| {e.name} | {', then '.join(step.model for step in e.steps)} "
        f"| {ends(e.inputs, e.max_batch)} | {ends(e.outputs, e.max_batch)} |"
        for e in ensembles
    ]
    head = ["| ensemble | runs | takes | returns |", "| --- | --- | --- | --- |"]
    return [*head, *rows, ""] if rows else []


def group_table(groups: Iterable[TargetGroup]) -> list[str]:
    rows = [
        f"| {group.name} | {group.kind} {group.version} "
        f"| {' '.join([*group.targets, group.gpu]).strip() or 'any CPU'} | {group.precision} |"
        for group in groups
    ]
    return ["| group | built with | targets | precision |", "| --- | --- | --- | --- |", *rows, ""]


def left_out(groups: Sequence[TargetGroup]) -> list[str]:
    if not groups:
        return []
    text = left_out_text(groups)
    return [f"{text[0].upper()}{text[1:]}.\n"]


def left_out_text(groups: Sequence[TargetGroup]) -> str:
    """Return which groups are not served, and of each kind why not."""
    named: dict[str, list[str]] = {}
    for group in groups:
        named.setdefault(NOT_SERVED.get(group.kind, "not asked for"), []).append(group.name)
    return "not served: " + "; ".join(f"{', '.join(k)} ({why})" for why, k in named.items())


def ends(tensors: Iterable[Tensor], max_batch: int) -> str:
    """Return inputs or outputs as text: `image FP32 [N, 3, ?, ?]`; the first ones of many."""
    batch = ["N"] if max_batch else []
    texts = [
        f"{each.name} {each.data_type.removeprefix('TYPE_')} "
        f"[{', '.join([*batch, *('?' if size < 0 else str(size) for size in each.dims)])}]"
        for each in tensors
    ]
    more = len(texts) - MOST_SHOWN
    return ", ".join(texts[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
