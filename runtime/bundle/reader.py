"""Read a bundle: check what it says of itself, then every byte, then unpack a target group.

Nothing of a bundle is opened, or believed, before it was compared with the digest that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import IntegrityError
from .archive import refused
from .blobs import BlobStore
from .layout import (
    BLOBS,
    FACTS_FILE,
    FILE_PATH,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    INDEX_FILE,
    LAYOUT_FILE,
    MODEL,
    SCHEMA_VERSION,
    TITLE,
    BundleFacts,
    BundleFile,
    Descriptor,
    ImageIndex,
    ImageManifest,
    TargetGroup,
    check_facts,
    group_annotations,
)
from .manifests import group_config, group_layers, group_manifest
from .plan_header import parse_plan_header, plan_problem
from .signers import read_signatures, signers_among

Progress = Callable[[int, int], None]


class LayoutVersion(msgspec.Struct, frozen=True):
    imageLayoutVersion: str


class FactsVersion(msgspec.Struct, frozen=True):
    """Read the version of `bundle.json` before the rest, which a newer one may have changed."""

    schema: str
    version: int


class Bundle:
    """Give access to the contents of a bundle file.

    Use as a context manager. Opening checks the layout and that each manifest lists exactly the
    files that `bundle.json` does, by the digests in them; `verify` reads every byte.
    """

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            IntegrityError: it is no bundle, or is damaged, incomplete or of a newer version.
            WorkspaceError: there is no such file.
        """
        self.path = path
        self.where = str(path)
        self.blobs = BlobStore(path)
        try:
            self._read()
        except BaseException:
            self.blobs.close()
            raise

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.blobs.close()

    def _read(self) -> None:
        layout = self.blobs.decode_member(LAYOUT_FILE, LayoutVersion)
        if not layout.imageLayoutVersion.startswith("1."):
            version = layout.imageLayoutVersion[:40]
            raise refused(f"has the OCI layout {version!r}, not 1.x", self.where)
        index = self.blobs.decode_member(INDEX_FILE, ImageIndex)
        used = {LAYOUT_FILE, INDEX_FILE}
        self.blobs.require_few(index.manifests, "entries of its index")
        models = [d for d in index.manifests if d.mediaType == IMAGE_INDEX]
        if len(models) != 1:
            raise refused(f"names {len(models)} models, not one", self.where)
        self.digest: str = models[0].digest
        self.model_index = models[0]
        self.model_blobs = frozenset(self._read_model(models[0]))
        signed = [d for d in index.manifests if d is not models[0]]
        self.signatures = read_signatures(self.blobs, signed, self.digest)
        used |= self.model_blobs
        used |= {name for signature in self.signatures for name in signature.blobs}
        extra = sorted(set(self.blobs.members) - used)
        if extra:
            raise refused(f"holds {extra[0]}, which nothing in it names", self.where)

    def _read_model(self, descriptor: Descriptor) -> set[str]:
        """Read and check `bundle.json` and the manifests; return the names of the model's blobs."""
        model = self.blobs.decode(descriptor, ImageIndex)
        self.blobs.require_few(model.manifests, "manifests")
        manifests = [(d, self.blobs.decode(d, ImageManifest)) for d in model.manifests]
        self.facts = self._read_facts([manifest for _, manifest in manifests])
        self.name = self.facts.name  # the index has a tag there once a registry had the bundle
        if (model.artifactType, model.annotations) != (MODEL, {TITLE: self.name}):
            raise refused("the index of its manifests is of another model", self.where)
        self._require_manifests(manifests)
        self.manifests = tuple(manifest for _, manifest in manifests)
        used = {descriptor.blob}
        for each, manifest in manifests:
            used |= {each.blob, manifest.config.blob, *(d.blob for d in manifest.layers)}
        return used

    def _read_facts(self, manifests: Sequence[ImageManifest]) -> BundleFacts:
        descriptors = {
            layer.digest: layer
            for manifest in manifests
            for layer in manifest.layers
            if layer.annotations.get(FILE_PATH) == FACTS_FILE
        }
        if len(descriptors) != 1:
            raise refused(f"has {len(descriptors)} files {FACTS_FILE}, not one", self.where)
        (self.facts_descriptor,) = descriptors.values()
        data = self.blobs.read(self.facts_descriptor)
        known = self.blobs.parse(data, FactsVersion, FACTS_FILE)
        if known.schema != "arvg-trt/bundle" or known.version < 1:
            what = f"has a {FACTS_FILE} of {known.schema[:40]!r}, version {known.version}"
            raise refused(what, self.where)
        if known.version > SCHEMA_VERSION:
            raise IntegrityError(
                f"is a bundle of version {known.version}, newer than this tool's {SCHEMA_VERSION}",
                where=self.where,
                do="update arvg-trt",
            )
        facts = self.blobs.parse(data, BundleFacts, FACTS_FILE)
        check_facts(facts, self.where)
        return facts

    def _require_manifests(self, manifests: Sequence[tuple[Descriptor, ImageManifest]]) -> None:
        """Raise IntegrityError unless there is a manifest for each group, with its files."""
        if len(manifests) != len(self.facts.groups):
            what = f"has {len(manifests)} manifests for {len(self.facts.groups)} target groups"
            raise refused(what, self.where)
        configs = [manifest.config for _, manifest in manifests]
        self.blobs.require_few(configs, "descriptions of groups")
        for (descriptor, manifest), group in zip(manifests, self.facts.groups, strict=True):
            layers = group_layers(self.facts, self.facts_file, group)
            if manifest.layers != layers:
                what = f"the manifest of {group.name} lists other files than {FACTS_FILE}"
                raise refused(what, self.where)
            said = (descriptor.mediaType, descriptor.artifactType, descriptor.annotations)
            true = (IMAGE_MANIFEST, MODEL, group_annotations(group))
            expected = group_manifest(group, layers, manifest.config)
            config = self.blobs.decode(manifest.config, dict)
            if (
                said != true
                or manifest != expected
                or config != group_config(self.facts, group, layers)
            ):
                raise refused(f"the manifest of {group.name} lies about the group", self.where)
            for layer in layers:
                self.blobs.sized(layer)

    def digests(self) -> dict[str, str]:
        """Return the sha256 of every file by its path, as signatures name them."""
        own = {FACTS_FILE: self.facts_descriptor.digest.removeprefix("sha256:")}
        return own | {file.path: file.sha256 for file in self.facts.files}

    def require_signature(
        self, keys: Sequence[tuple[str, ec.EllipticCurvePublicKey]]
    ) -> tuple[str, ...]:
        """Return the names of those of some keys, given by name, that signed these files.

        Raises:
            IntegrityError: none of them did, or there is no signature.
        """
        return signers_among(keys, self.signatures, self.digests(), self.where)

    def verify(self, progress: Progress | None = None) -> None:
        """Compare every blob with the digest that it is named by, and engines with their groups.

        Raises:
            IntegrityError: one differs; names the file. Or an engine is not for the GPUs, or by
                the builder, that its group says.
        """
        paths = {f"{BLOBS}{digest}": path for path, digest in self.digests().items()}
        sizes = {n: m.size for n, m in self.blobs.members.items() if n.startswith(BLOBS)}
        total, done = sum(sizes.values()), 0
        for name in sizes:
            done += self.blobs.copy(name, None, paths.get(name, name))
            if progress is not None:
                progress(done, total)
        for group in self.facts.groups:
            self.require_engines(group)

    def require_engines(self, group: TargetGroup) -> None:
        """Compare the engines of a target group with what it says of them, before one is opened.

        Raises:
            IntegrityError: one is not for the GPUs, or by the builder, that its group says.
        """
        for file in group.files:
            if not file.path.endswith(".engine"):
                continue
            with self.blobs.mapped(BLOBS + file.sha256) as plan:
                header = parse_plan_header(plan, file.path)
            assert header is not None, "an engine by its name"
            problem = plan_problem(header, group.kind, group.version, group.targets)
            if problem is not None:
                raise refused(f"{file.path} {problem}", self.where)

    def extract(self, files: Sequence[BundleFile], folder: Path) -> None:
        """Write files below a folder, each compared with its digest as it is written.

        Raises:
            IntegrityError: one differs; names it.
            OSError: the disk is full.
        """
        for file in files:
            target = folder.joinpath(*file.path.split("/"))
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                self.blobs.copy(BLOBS + file.sha256, stream, file.path)

    @property
    def facts_file(self) -> BundleFile:
        """Return `bundle.json` as one of the files."""
        own = self.facts_descriptor
        digest = own.digest.removeprefix("sha256:")
        return BundleFile(path=FACTS_FILE, sha256=digest, bytes=own.size)
