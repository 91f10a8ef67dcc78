"""Read typed facts of earlier stages from their manifests, checked as they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from ..errors import CalibrationError, WorkspaceError
from .manifest import Manifest
from .stage import require_outputs
from .verify import GENERATOR_FILE
from .workspace import Workspace

ModelKind = Literal["generator", "tokenizer", "custom"]

TITLED_GRAPHS, LONGEST_TITLE = 3, 60  # graphs, and letters, that the name of a model has
# Back ends whose engines run on the CPU; `cpu` is the faster of the two others.
CPU_BACKENDS = ("cpu", "openvino", "onnxruntime")
FP16 = "fp16"  # names the engines of the unquantized graphs
Value = TypeVar("Value")
Facts = TypeVar("Facts", bound=msgspec.Struct)


def is_of_cpu(folder: str) -> bool:
    """Return whether a folder of engines, `engines/NAME/LABEL`, has those of a back end for CPUs.

    A label begins with its back end: openvino-bf16.
    """
    return folder.rpartition("/")[2].partition("-")[0] in CPU_BACKENDS


def manifest_value(
    manifest: Manifest, part: Literal["options", "results"], key: str, kind: type[Value]
) -> Value:
    """Return the value of a manifest under a key, converted to `kind`.

    Raises:
        WorkspaceError: there is no value, or not one of that kind.
    """
    values = getattr(manifest, part)
    try:
        if key not in values:
            raise msgspec.ValidationError("it is not there")
        return msgspec.convert(values[key], kind)
    except msgspec.ValidationError as error:
        raise WorkspaceError(
            f"its manifest has no {part}.{key} that is read: {error}",
            where=manifest.stage,
            do=f"run `arvg-trt {manifest.stage}` again",
        ) from error


class ValueFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an input or output of a graph; a dynamic axis of `shape` is a text or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


class GraphFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A graph of a user's own, and the number of floats that it holds as weights."""

    name: str
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    parameters: int = 0


class TokenizerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an image tokenizer; `codebook_size` is None for continuous latents.

    One token covers `stride` x `stride` pixels. `levels` are those of each scalar that is rounded,
    in tokenizers that do. Only families that divide the channels of a latent into groups, each
    with a code of its own, say how many `groups`. Only those of several scales say the one
    ``fixed_size`` of their images, in pixels, and how many ``tokens`` an image has.
    """

    stride: int
    discrete: bool
    levels: tuple[int, ...] = ()
    groups: int | msgspec.UnsetType = msgspec.UNSET
    latent_channels: int
    codebook_size: int | None = None
    fixed_size: int | msgspec.UnsetType = msgspec.UNSET
    tokens: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def image_size(self) -> int | None:
        """Return the side of the only images that the tokenizer takes; None: any in strides."""
        return None if self.fixed_size is msgspec.UNSET else self.fixed_size

    @property
    def codes_per_cell(self) -> int:
        """Return how many codes a cell of the map has."""
        return 1 if self.groups is msgspec.UNSET else self.groups


class ExportFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what later stages read of an export: custom `graphs`, or an image tokenizer."""

    graphs: tuple[GraphFacts, ...] | None = None
    tokenizer: TokenizerFacts | None = None


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what later stages read of a build's options; those for the CPU have no ``targets``.

    ``image_size`` is the side of the only images that a tokenizer's engines for a GPU take.
    """

    backend: str = "onnxruntime"
    name: str = ""
    targets: tuple[str, ...] = ()
    half: str = "float16"
    image_size: int | None = None

    @property
    def on_cpu(self) -> bool:
        return self.backend in CPU_BACKENDS


def facts(
    manifest: Manifest, kind: type[Facts], part: Literal["options", "results"] = "results"
) -> Facts:
    """Return what a manifest's results (or options) tell, as a struct of their stage.

    Raises:
        WorkspaceError: something is not there, or of another kind.
    """
    try:
        return msgspec.convert(getattr(manifest, part), kind)
    except msgspec.ValidationError as error:
        raise WorkspaceError(
            f"its manifest has {part} that are not read: {error}",
            where=manifest.stage,
            do=f"run `arvg-trt {manifest.stage}` again",
        ) from error


@dataclass(frozen=True, slots=True)
class Exported:
    """A model that was exported: the folder of its graphs, and what its manifest says."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, workspace: Workspace) -> Exported:
        """Raises WorkspaceError as `require_outputs` does."""
        return cls(*require_outputs(workspace, "export", stage="export"))

    @property
    def kind(self) -> ModelKind:
        return kind_of(self.manifest)


def kind_of(exported: Manifest) -> ModelKind:
    """Return what was exported: a generator, an image tokenizer, or custom graphs."""
    if GENERATOR_FILE in exported.outputs:
        return "generator"
    return "custom" if "graphs" in exported.results else "tokenizer"


def known_name(exported: Manifest) -> str:
    """Return the name that a model was exported by: one of a list, `onnx` for custom graphs."""
    return manifest_value(exported, "options", "model", str)


def model_name(exported: Manifest) -> str:
    """Return what a model is called in reports and bundles; custom graphs as their files are.

    Their title goes before the names of the files.
    """
    if "graphs" not in exported.options:
        return known_name(exported)
    if "title" in exported.options:
        return manifest_value(exported, "options", "title", str)
    return title_of(manifest_value(exported, "options", "graphs", tuple[str, ...]))


def title_of(graphs: Sequence[str]) -> str:
    """Return one name for graphs that make a model, which is a file's name too."""
    whole = "-".join(graphs)
    if len(graphs) == 1 or (len(graphs) <= TITLED_GRAPHS and len(whole) <= LONGEST_TITLE):
        return whole
    return f"{graphs[0]}-and-{len(graphs) - 1}-more"


def require_same_export(exported: Manifest, calibrated: Manifest, where: str | None = None) -> None:
    """Raise CalibrationError for statistics of graphs that have been exported anew since."""
    odd = [n for n, digest in exported.as_inputs().items() if calibrated.inputs.get(n) != digest]
    if odd:
        raise CalibrationError(
            f"the statistics are of another export: {odd[0]} differs",
            where=where,
            do="run `arvg-trt calibrate` again",
        )


def export_digest(exported: Manifest) -> str:
    """Return one digest of all files that an export wrote."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(exported.outputs.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def tokenizer_of(exported: Manifest) -> TokenizerFacts:
    """Return the facts about the exported image tokenizer.

    Raises:
        WorkspaceError: it is of a generator, which the stage does not take yet.
    """
    tokenizer = facts(exported, ExportFacts).tokenizer
    if tokenizer is None:
        raise WorkspaceError(
            f"{model_name(exported)} generates, it is no image tokenizer",
            do="calibrate, quantize and generate take it",
        )
    return tokenizer


def custom_graphs(exported: Manifest) -> tuple[GraphFacts, ...]:
    """Return the graphs of a custom model, in the order that they run."""
    return facts(exported, ExportFacts).graphs or ()
