"""Read the signatures that lie in a bundle, and say which of some keys made one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import IntegrityError
from .archive import refused
from .blobs import BlobStore
from .keys import key_hint
from .layout import SIGSTORE, Descriptor, ImageManifest
from .signature import OtherKey, SigstoreBundle, read_signature, verify_signature


@dataclass(frozen=True, slots=True)
class Signature:
    """Hold a signature of a bundle, and the blobs that are there only for it."""

    bundle: SigstoreBundle
    descriptor: Descriptor
    blobs: frozenset[str]

    @property
    def hint(self) -> str:
        """Return the sha256 of the key that signed, as the signature names it."""
        return self.bundle.verificationMaterial.publicKey.hint


def read_signatures(
    blobs: BlobStore, descriptors: Sequence[Descriptor], subject: str
) -> tuple[Signature, ...]:
    """Return the signatures of the bundle whose index has the digest `subject`.

    Raises:
        IntegrityError: one is damaged, no signature, or of another bundle.
    """
    manifests = [read_manifest(blobs, each, subject) for each in descriptors]
    layers = [manifest.layers[0] for manifest in manifests]
    blobs.require_few(layers, "signatures")
    return tuple(
        Signature(
            bundle=read_signature(blobs.read(layer), blobs.where),
            descriptor=descriptor,
            blobs=frozenset((descriptor.blob, layer.blob, manifest.config.blob)),
        )
        for descriptor, manifest, layer in zip(descriptors, manifests, layers, strict=True)
    )


def read_manifest(blobs: BlobStore, descriptor: Descriptor, subject: str) -> ImageManifest:
    """Return the manifest of a signature."""
    manifest = blobs.decode(descriptor, ImageManifest)
    if manifest.artifactType != SIGSTORE or len(manifest.layers) != 1:
        raise refused(f"names a manifest of {manifest.artifactType[:80]!r}", blobs.where)
    if not manifest.subject or manifest.subject.digest != subject:
        raise refused("has a signature of another bundle", blobs.where)
    blobs.sized(manifest.config)
    return manifest


def signers_among(
    keys: Sequence[tuple[str, ec.EllipticCurvePublicKey]],
    signatures: Sequence[Signature],
    digests: Mapping[str, str],
    where: str,
) -> tuple[str, ...]:
    """Return the names of those of some keys, given by name, that signed files of these digests.

    Raises:
        IntegrityError: none of them did, or there is no signature.
    """
    if not signatures:
        named = ", ".join(name for name, _ in keys)
        raise IntegrityError(
            f"is not signed, and a signature by {named} is required",
            where=where,
            do="sign it with `arvg-trt sign`",
        )
    signed, problems = [], []
    for name, key in keys:
        for signature in signatures:
            try:
                verify_signature(signature.bundle, digests, key, where)
            except IntegrityError as error:
                problems.append(error)
            else:
                signed.append(name)
    if signed:
        return tuple(dict.fromkeys(signed))
    own = [error for error in problems if not isinstance(error, OtherKey)]
    if own:  # a signature names the key, and is wrong
        raise own[0]
    wanted = " or ".join(f"{name} ({key_hint(key)[:16]})" for name, key in keys)
    found = ", ".join(signature.hint[:16] for signature in signatures)
    raise IntegrityError(
        f"is signed by another key, {found}, and not by {wanted}, which is required",
        where=where,
        do="have it signed by that key, or require the key of who signed it",
    )
