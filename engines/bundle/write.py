"""Write a bundle: an OCI image layout in an uncompressed tar file, the same bytes every time.

There is no time, owner or order of a file system in it. Contents that are equal are one blob.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import WorkspaceError
from ...runtime.bundle.keys import key_hint
from ...runtime.bundle.layout import (
    BLOBS,
    EMPTY,
    FACTS_FILE,
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    INDEX_FILE,
    LAYOUT_FILE,
    LAYOUT_VERSION,
    MODEL,
    MODEL_CONFIG,
    REFERENCE_NAME,
    SIGSTORE,
    TITLE,
    BundleFile,
    Descriptor,
    ImageIndex,
    ImageManifest,
    facts_problem,
    group_annotations,
)
from ...runtime.bundle.manifests import group_config, group_layers, group_manifest
from ...runtime.bundle.reader import Bundle
from ...runtime.bundle.signature import sign
from ...workspace.files import atomic_stream, encode_json
from .contents import Contents, Source, bundle_file

BLOCK = 2**20
Progress = Callable[[int, int], None]


class Blobs:
    """Collect blobs by digest: small ones in memory, files by their path."""

    def __init__(self) -> None:
        self.sources: dict[str, tuple[int, Source]] = {}

    def add(self, kind: str, data: bytes, **more: object) -> Descriptor:
        """Add bytes; return their descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        self.sources[digest] = (len(data), data)
        return Descriptor(mediaType=kind, digest=f"sha256:{digest}", size=len(data), **more)  # type: ignore[arg-type]

    def add_json(self, kind: str, value: object, **more: object) -> Descriptor:
        return self.add(kind, encode_json(value), **more)

    def add_file(self, file: BundleFile, source: Source) -> None:
        """Add a file of known digest and size."""
        self.sources.setdefault(file.sha256, (file.bytes, source))


def write_bundle(
    output: Path,
    contents: Contents,
    key: ec.EllipticCurvePrivateKey | None = None,
    progress: Progress | None = None,
) -> str:
    """Write a bundle file, signed where there is a key; return the digest of its model index.

    Raises:
        WorkspaceError: a file changed while it was read, or has a name that no reader of bundles
            takes; no bundle is left then.
    """
    facts = contents.facts
    problem = facts_problem(facts)
    if problem is not None:
        raise WorkspaceError(problem, where=str(output), do="give it another name")
    blobs = Blobs()
    facts_data = encode_json(facts)
    facts_file = bundle_file(FACTS_FILE, facts_data)
    blobs.add_file(facts_file, facts_data)
    for file in facts.files:
        blobs.add_file(file, contents.sources[file.path])
    manifests = []
    for group in facts.groups:
        layers = group_layers(facts, facts_file, group)
        config = blobs.add_json(MODEL_CONFIG, group_config(facts, group, layers))
        manifests.append(
            blobs.add_json(
                IMAGE_MANIFEST,
                group_manifest(group, layers, config),
                artifactType=MODEL,
                annotations=group_annotations(group),
            )
        )
    index = ImageIndex(
        artifactType=MODEL,
        manifests=tuple(manifests),
        annotations={TITLE: facts.name},
    )
    model = blobs.add_json(
        IMAGE_INDEX, index, artifactType=MODEL, annotations={REFERENCE_NAME: facts.name}
    )
    digests = {file.path: file.sha256 for file in (facts_file, *facts.files)}
    signatures = []
    if key is not None:
        signatures.append(add_signature(blobs, model, sign(facts.name, digests, key)))
    write_layout(output, (model, *signatures), blobs.sources, progress)
    return model.digest


def sign_bundle(
    bundle: Bundle,
    output: Path,
    key: ec.EllipticCurvePrivateKey,
    progress: Progress | None = None,
) -> None:
    """Write a bundle again with a signature; one of the same key that it had is replaced.

    Every blob is compared with its digest on the way, so that nothing else is signed.
    """
    bundle.verify()
    blobs = Blobs()
    hint = key_hint(key.public_key())
    kept = [s for s in bundle.signatures if s.hint != hint]
    used = bundle.model_blobs.union(*(s.blobs for s in kept))
    left = {name for s in bundle.signatures for name in s.blobs} - used
    for name, member in bundle.blobs.members.items():
        if name.startswith(BLOBS) and name not in left:
            blobs.sources[name.removeprefix(BLOBS)] = (member.size, b"")
    own = add_signature(blobs, bundle.model_index, sign(bundle.name, bundle.digests(), key))
    descriptors = (bundle.model_index, *(s.descriptor for s in kept), own)
    write_layout(output, descriptors, blobs.sources, progress, bundle)


def add_signature(blobs: Blobs, subject: Descriptor, signature: bytes) -> Descriptor:
    """Add a signature that refers to the model, as registries attach one; return its descriptor."""
    manifest = ImageManifest(
        artifactType=SIGSTORE,
        config=blobs.add(EMPTY, b"{}"),
        layers=(blobs.add(SIGSTORE, signature),),
        subject=Descriptor(mediaType=subject.mediaType, digest=subject.digest, size=subject.size),
    )
    return blobs.add_json(IMAGE_MANIFEST, manifest, artifactType=SIGSTORE)


def write_layout(
    output: Path,
    manifests: Iterable[Descriptor],
    blobs: Mapping[str, tuple[int, Source]],
    progress: Progress | None = None,
    copied: Bundle | None = None,
) -> None:
    """Write the tar file: the layout's mark, the index, then the blobs by their digest.

    Blobs without bytes of their own are copied from the bundle `copied`.
    """
    index = ImageIndex(manifests=tuple(manifests))
    layout = msgspec.json.encode({"imageLayoutVersion": LAYOUT_VERSION})
    total, done = sum(size for size, _ in blobs.values()), 0
    with (
        atomic_stream(output) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name, data in ((LAYOUT_FILE, layout), (INDEX_FILE, encode_json(index))):
            archive.addfile(member(name, len(data)), io.BytesIO(data))
        for digest, (size, source) in sorted(blobs.items()):
            archive.addfile(member(BLOBS + digest, size))
            if source == b"" and size and copied is not None:
                copied.blobs.copy(BLOBS + digest, stream, BLOBS + digest)
            else:
                write_source(stream, digest, size, source)
            pad(stream, size)
            archive.offset += -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            done += size
            if progress is not None:
                progress(done, total)


def member(name: str, size: int) -> tarfile.TarInfo:
    """Return a header without time and owner, so that the same files give the same bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def write_source(stream: IO[bytes], digest: str, size: int, source: Source) -> None:
    """Copy bytes whose digest is known; raise WorkspaceError if they changed since."""
    found, written = hashlib.sha256(), 0
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as opened:
        while block := opened.read(BLOCK):
            found.update(block)
            written += len(block)
            stream.write(block)
    if found.hexdigest() != digest or written != size:
        what = "changed while it was read"
        raise WorkspaceError(what, where=str(source)[:200], do="run the command again")


def pad(stream: IO[bytes], size: int) -> None:
    stream.write(b"\0" * (-size % tarfile.BLOCKSIZE))
