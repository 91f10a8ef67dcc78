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
from ...recipe.base import check_name
from ...workspace.verify import PACKED_FILE

SCHEMA_VERSION = 2
EXPANDED_VERSION = 1  # of a bundle without packed weights, which older readers open too
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

MOST_FILES = 10_000
MOST_GROUPS = 100
MOST_TEXT = 200  # characters of a name, a precision, a target
MOST_NAME = 100  # bytes of a target group's name, which becomes part of a folder's
MOST_PATH, MOST_PART, MOST_DEPTH = (
    1000,
    200,
    30,
)  # bytes, bytes, folders: every file system has room

# `$` would match before a final line break too.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0)]
GroupKind = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "kit", "reference"]


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

    @property
    def is_packed(self) -> bool:
        """Return whether weights of its graphs are packed."""
        return any(file.path.endswith(f"/{PACKED_FILE}") for file in self.files)


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
    digest: Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
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
    if suffix in ("engine", "onnx", "data", "safetensors", "blob"):
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


REFUSED = "do not use it: get the bundle again from where it was made"


def check_facts(facts: BundleFacts, where: str) -> None:
    """Refuse a `bundle.json` whose paths could leave their folder, or that contradicts itself.

    Raises:
        IntegrityError: names the first such path or group.
    """
    problem = facts_problem(facts)
    if problem is not None:
        raise IntegrityError(problem, where=where, do=REFUSED)


def facts_problem(facts: BundleFacts) -> str | None:
    """Return the first fault in what a bundle says of itself; None if there is none."""
    if len(facts.groups) > MOST_GROUPS or len(facts.files) > MOST_FILES:
        return f"has more than {MOST_GROUPS} target groups or {MOST_FILES:,} files"
    shown = [facts.name, facts.model, facts.quantization, facts.tool]
    for group in facts.groups:
        shown += [group.version, group.precision, group.gpu, *group.targets]
    for text in shown:
        if len(text) > MOST_TEXT or not text.isprintable():
            return f"{text[:100]!r} is too long to be shown, or has control characters"
    try:
        check_name(facts.quantization)  # `build --from` makes a folder of this name
    except ValueError as error:
        return f"is of no quantization: {error}"
    return paths_problem(facts) or groups_problem(facts)


def paths_problem(facts: BundleFacts) -> str | None:
    """Return which path leaves its folder, or is the same as another on some system."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in (FACTS_FILE, *(file.path for file in facts.files)):
        problem = path_problem(path)
        if problem is not None:
            return f"the path {path[:100]!r} {problem}"
        parts = folded(path).split("/")
        above = {"/".join(parts[:k]) for k in range(1, len(parts))}
        if folded(path) in seen or folded(path) in folders:
            return f"the path {path[:100]!r} is there twice"
        if above & seen:
            return f"the path {path[:100]!r} lies below a file"
        seen.add(folded(path))
        folders |= above
    return None


def groups_problem(facts: BundleFacts) -> str | None:
    """Return which target group has no name or folder of its own."""
    names: set[str] = set()
    for group in facts.groups:
        called = f"the target group {group.name[:100]!r}"
        if len(group.name) > MOST_NAME or name_problem(group.name) is not None:
            return f"{called} has a name that no folder can have"
        if folded(group.name) in names:
            return f"{called} is named twice"
        if path_problem(group.folder) is not None:
            return f"{called} has no folder"
        if not any(file.path.startswith(f"{group.folder}/") for file in group.files):
            return f"{called} has no file in its folder"
        names.add(folded(group.name))
    return None


def name_problem(name: str) -> str | None:
    """Return why a name is not one of a file or a folder itself; None if it is."""
    return "has folders" if "/" in name else path_problem(name)


def folded(path: str) -> str:
    """Return what two paths have in common that are one on some file system."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


ODD_CHARACTERS = re.compile(r'[\\:*?"<>|]')  # Windows forbids them in a name
# Windows opens a device for these names, whatever follows a dot.
DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *(\..*)?"
)


def path_problem(path: str) -> str | None:
    """Return why a path is not one of a file below a folder, on every system; None if it is.

    Hidden files are none: a `.git` in a folder has its own say in what programs do there.
    """
    if not path.isprintable() or ODD_CHARACTERS.search(path):
        return "has a character that not every system takes"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "leaves its folder" if path else "is empty"
    long = len(path.encode()) > MOST_PATH or any(len(part.encode()) > MOST_PART for part in parts)
    if long or len(parts) > MOST_DEPTH:
        return "is too long"
    if any(part.startswith(".") or part != part.strip(" ").rstrip(".") for part in parts):
        return "is hidden, or begins or ends as not every system takes it"
    if any(DEVICES.fullmatch(part.casefold()) for part in parts):
        return "is the name of a device on Windows"
    return None
