"""Sign the files of a bundle, and verify a signature, as OpenSSF model signing 1.0 does.

The statement is an in-toto statement of the sha256 of each file; it is signed with ECDSA in a DSSE
envelope, which lies in a sigstore bundle of the format 0.3. The package `model_signing` verifies
such a signature over the unpacked files, and this module verifies its.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import ArvgError, IntegrityError
from ...workspace.files import UNDECODABLE, decode_unique, said
from .keys import HASHES, key_hint
from .layout import SIGSTORE

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
GET_AGAIN = "do not use it: get the bundle and its signature again from where they were made"


class OtherKey(IntegrityError):
    """Report a signature that names another key."""


class Resource(msgspec.Struct, frozen=True):
    """Name a file of the model and its digest."""

    name: str
    algorithm: str
    digest: str


class Serialization(msgspec.Struct, frozen=True):
    """Say how the files were hashed: each by itself."""

    method: str
    hash_type: str
    allow_symlinks: bool = False


class Predicate(msgspec.Struct, frozen=True):
    serialization: Serialization
    resources: tuple[Resource, ...]


class Subject(msgspec.Struct, frozen=True):
    """Name the model, and the digest over the digests of its files."""

    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, rename={"kind": "_type"}):
    """Hold what is signed."""

    kind: str
    subject: tuple[Subject, ...]
    predicateType: str
    predicate: Predicate


class EnvelopeSignature(msgspec.Struct, frozen=True):
    sig: str
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True):
    payload: str
    payloadType: str
    signatures: tuple[EnvelopeSignature, ...]


class PublicKeyHint(msgspec.Struct, frozen=True):
    """Name a key by its digest; what is printed of a signature before it is checked."""

    hint: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""


class Material(msgspec.Struct, frozen=True):
    publicKey: PublicKeyHint
    tlogEntries: msgspec.Raw = msgspec.Raw(b"[]")


class SigstoreBundle(msgspec.Struct, frozen=True):
    """Hold a signature as sigstore's tools write it."""

    mediaType: str
    verificationMaterial: Material
    dsseEnvelope: Envelope


def scheme_of(
    key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey, *, deterministic: bool = False
) -> ec.ECDSA:
    """Return ECDSA with the hash that goes with a key's curve; deterministic as RFC 6979 has it."""
    return ec.ECDSA(HASHES[key.curve.name](), deterministic_signing=deterministic)


def sign(name: str, digests: Mapping[str, str], key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a sigstore bundle that signs files, given as sha256 by path, under a model's name.

    The same files, name and key give the same bytes.
    """
    payload = msgspec.json.encode(statement_of(name, digests))
    signature = key.sign(signed_bytes(payload), scheme_of(key, deterministic=True))
    bundle = SigstoreBundle(
        mediaType=SIGSTORE,
        verificationMaterial=Material(PublicKeyHint(key_hint(key.public_key()))),
        dsseEnvelope=Envelope(
            payload=base64.b64encode(payload).decode(),
            payloadType=PAYLOAD_TYPE,
            signatures=(EnvelopeSignature(base64.b64encode(signature).decode()),),
        ),
    )
    return msgspec.json.encode(bundle)


def statement_of(name: str, digests: Mapping[str, str]) -> Statement:
    resources = tuple(Resource(path, "sha256", digests[path]) for path in sorted(digests))
    return Statement(
        kind=STATEMENT_TYPE,
        subject=(Subject(name, {"sha256": root_digest(resources)}),),
        predicateType=PREDICATE_TYPE,
        predicate=Predicate(Serialization("files", "sha256"), resources),
    )


def root_digest(resources: tuple[Resource, ...]) -> str:
    """Return the sha256 over the digests of all files, in their order."""
    return hashlib.sha256(b"".join(bytes.fromhex(r.digest) for r in resources)).hexdigest()


def signed_bytes(payload: bytes) -> bytes:
    """Return DSSE's encoding of a payload before it is signed."""
    return b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE),
        PAYLOAD_TYPE.encode(),
        len(payload),
        payload,
    )


def read_signature(data: bytes, where: str) -> SigstoreBundle:
    """Decode a sigstore bundle.

    Raises:
        IntegrityError: it is none.
    """
    try:
        bundle = decode_unique(data, SigstoreBundle)
    except UNDECODABLE as error:
        what = f"is no signature in a sigstore bundle: {said(error)}"
        raise IntegrityError(what, where=where, do=GET_AGAIN) from error
    if bundle.mediaType != SIGSTORE:
        what = f"is a signature of the type {bundle.mediaType[:80]!r}, not {SIGSTORE}"
        raise IntegrityError(what, where=where, do=GET_AGAIN)
    return bundle


def verify_signature(
    bundle: SigstoreBundle, digests: Mapping[str, str], key: ec.EllipticCurvePublicKey, where: str
) -> None:
    """Check that a key has signed exactly these files, given as sha256 by path.

    Raises:
        IntegrityError: another key has signed, the signature is wrong, or it is of other files.
    """
    hint = bundle.verificationMaterial.publicKey.hint
    if hint and hint != key_hint(key):
        what = f"is signed by another key: {hint[:16]}, not {key_hint(key)[:16]}"
        raise OtherKey(what, where=where, do="give the public key of who signed it")
    envelope = bundle.dsseEnvelope
    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        signatures = [base64.b64decode(s.sig, validate=True) for s in envelope.signatures]
    except (binascii.Error, ValueError) as error:
        raise IntegrityError("has a damaged signature", where=where, do=GET_AGAIN) from error
    try:
        (signature,) = signatures
        key.verify(signature, signed_bytes(payload), scheme_of(key))
    except (InvalidSignature, ValueError) as error:
        what = "has a signature that is not by this key, or of other files"
        raise IntegrityError(what, where=where, do=GET_AGAIN) from error
    try:
        require_files(payload, envelope.payloadType, digests)
    except (ArvgError, *UNDECODABLE, ValueError) as error:
        what = f"has a signature of something else: {said(error)}"
        raise IntegrityError(what, where=where, do=GET_AGAIN) from error


def require_files(payload: bytes, payload_type: str, digests: Mapping[str, str]) -> None:
    """Raise ValueError unless a signed payload is the statement of exactly these files."""
    if payload_type != PAYLOAD_TYPE:
        raise ValueError(f"the payload is {payload_type[:80]}")
    statement = decode_unique(payload, Statement)
    if (statement.kind, statement.predicateType) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise ValueError(f"the statement is {statement.predicateType[:80]}")
    resources = statement.predicate.resources
    serialization = statement.predicate.serialization
    if (serialization.method, serialization.hash_type) != ("files", "sha256"):
        raise ValueError(f"files were hashed by {serialization.method[:40]}")
    if any(resource.algorithm != "sha256" for resource in resources):
        raise ValueError("a digest is no sha256")
    if [s.digest.get("sha256") for s in statement.subject] != [root_digest(resources)]:
        raise ValueError("its digest is not that of its files")
    signed = {resource.name: resource.digest for resource in resources}
    odd = sorted(p for p in {*signed, *digests} if signed.get(p) != digests.get(p))
    if odd or len(signed) != len(resources):
        raise ValueError(f"{(odd or ['a file'])[0][:100]} differs from what was signed")
