"""Define what a bundle is: an OCI image layout in a tar file, and `bundle.json` that it holds.

The tar has `oci-layout`, `index.json` and blobs named by their sha256. The index names one model
index, with a manifest for each target group, as CNCF ModelPack describes models; a layer is a file.
`bundle.json` is among the files, so that a signature over them covers what it says of the groups.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal

import msgspec

from ...errors import IntegrityError

SCHEMA_VERSION = 1
FACTS_FILE = "bundle.json"
LAYOUT_FILE, INDEX_FILE = "oci-layout", "index.json"
LAYOUT_VERSION = "1.0.0"
BLOBS = "blobs/sha256/"
BLOB_NAME = re.compile(r"blobs/sha256/[0-9a-f]{64}")

IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
MODEL_CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT = "application/vnd.cncf.model.doc.v1.raw"
SIGSTORE = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY = "application/vnd.oci.empty.v1+json"
FILE_PATH = "org.cncf.model.filepath"
REFERENCE_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
OWN = "io.arvg-trt."  # begins the keys of our own annotations

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0)]
GroupKind = Literal["onnxruntime", "tensorrt", "tensorrt_rtx", "kit", "reference"]


class BundleFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe a file by its path below the folder that a bundle is unpacked to."""

    path: str
    sha256: Sha256
    bytes: Size


class TargetGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe the files that one kind of device takes.

    Attributes:
        kind: the back end of engines; `kit`: half-precision ONNX to build from on a device;
            `reference`: what `validate` compares with.
        folder: where its graphs lie among the unpacked files.
        version: of the builder, "" for what was not built.
        targets: compute capabilities, such as sm89; none for what every machine runs.
        gpu: the GPU that a TensorRT engine was built on, "" for any other kind.
    """

    name: str
    kind: GroupKind
    folder: str
    version: str = ""
    targets: tuple[str, ...] = ()
    precision: str = ""
    gpu: str = ""
    files: tuple[BundleFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class BundleFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hold `bundle.json`: the model, its target groups, and the documents that all share."""

    version: int
    name: str
    model: str
    kind: Literal["tokenizer", "generator", "custom"]
    quantization: str
    tool: str
    groups: tuple[TargetGroup, ...]
    documents: tuple[BundleFile, ...]
    schema: Literal["arvg-trt/bundle"] = "arvg-trt/bundle"

    @property
    def files(self) -> tuple[BundleFile, ...]:
        """Return all files but `bundle.json` itself."""
        return (*self.documents, *(file for group in self.groups for file in group.files))

    def group(self, kind: GroupKind) -> TargetGroup | None:
        """Return the first group of a kind."""
        return next((group for group in self.groups if group.kind == kind), None)


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Point to a blob, as OCI does."""

    mediaType: str
    digest: Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
    size: Size
    artifactType: str | None = None
    annotations: dict[str, str] = {}

    @property
    def blob(self) -> str:
        """Return the name of the blob in the tar."""
        return BLOBS + self.digest.removeprefix("sha256:")


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an OCI image manifest: of a target group, or with a `subject` of a signature."""

    schemaVersion: Literal[2] = 2
    mediaType: Literal["application/vnd.oci.image.manifest.v1+json"] = (
        "application/vnd.oci.image.manifest.v1+json"
    )
    artifactType: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    subject: Descriptor | msgspec.UnsetType = msgspec.UNSET
    annotations: dict[str, str] = {}


class ImageIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an OCI image index."""

    schemaVersion: Literal[2] = 2
    mediaType: Literal["application/vnd.oci.image.index.v1+json"] = (
        "application/vnd.oci.image.index.v1+json"
    )
    artifactType: str | msgspec.UnsetType = msgspec.UNSET
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] = {}


def media_type(path: str) -> str:
    """Return the ModelPack type of a file by its name."""
    suffix = path.rpartition(".")[2]
    if suffix in ("engine", "onnx", "data", "safetensors"):
        return WEIGHTS
    return DOCUMENT if suffix in ("md", "html", "txt") else WEIGHT_CONFIG


def group_annotations(group: TargetGroup) -> dict[str, str]:
    """Return what a registry shows of a target group."""
    values = {
        TITLE: group.name,
        f"{OWN}kind": group.kind,
        f"{OWN}targets": " ".join(group.targets),
        f"{OWN}precision": group.precision,
        f"{OWN}version": group.version,
    }
    return {key: value for key, value in values.items() if value}


def check_facts(facts: BundleFacts, where: str) -> None:
    """Refuse a `bundle.json` whose paths could leave their folder, or that contradicts itself.

    Raises:
        IntegrityError: names the first such path or group.
    """
    seen: set[str] = set()
    folders: set[str] = set()
    for path in (FACTS_FILE, *(file.path for file in facts.files)):
        problem = path_problem(path)
        folded = unicodedata.normalize("NFC", path).casefold()
        if problem is None and (folded in seen or folded in folders):
            problem = "is there twice"
        parts = folded.split("/")
        above = {"/".join(parts[:k]) for k in range(1, len(parts))}
        if problem is None and above & seen:
            problem = "lies below a file"
        if problem is not None:
            raise IntegrityError(f"the path {path[:100]!r} {problem}", where=where, do=REFUSED)
        seen.add(folded)
        folders |= above
    names = [group.name for group in facts.groups]
    for group in facts.groups:
        inside = f"{group.folder}/"
        if names.count(group.name) > 1 or path_problem(group.folder) is not None:
            what = f"the target group {group.name[:100]!r} is named twice or has no folder"
            raise IntegrityError(what, where=where, do=REFUSED)
        if not any(file.path.startswith(inside) for file in group.files):
            what = f"the target group {group.name[:100]!r} has no file in its folder"
            raise IntegrityError(what, where=where, do=REFUSED)


REFUSED = "do not use it: get the bundle again from where it was made"
# What Windows forbids in a name, and control characters.
ODD_CHARACTERS = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


def path_problem(path: str) -> str | None:
    """Return why a path is not one of a file below a folder, on every system; None if it is."""
    parts = path.split("/")
    if not path or len(path) > 1000 or any(len(part) > 200 for part in parts):
        return "is empty or too long"
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder"
    if ODD_CHARACTERS.search(path) or any(part != part.rstrip(". ") for part in parts):
        return "has a character that not every system takes"
    return None
