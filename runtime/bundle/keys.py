"""Make, write and read the keys that sign bundles and verify them: ECDSA in PEM files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import IntegrityError
from ...workspace.files import said

# By the curve's name: other curves have keys of the same lengths, and sigstore knows none of them.
HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
PASSWORD_VARIABLE = "ARVG_TRT_KEY_PASSWORD"
KEYGEN = "make a pair with `arvg-trt keygen`"
OTHER_PASSWORD = "set the password that it was made with"
# How PEM files name their kind.
PUBLIC_MARK, PRIVATE_MARK = b"PUBLIC KEY-----", b"PRIVATE KEY-----"


def generate_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key, ECDSA on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    """Return a private key as a PEM file holds it, encrypted where there is a password."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        protection = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as a PEM file holds it."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the sha256 of a public key's PEM file, by which signatures name it."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def read_private_key(path: Path, password: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Read a private key from a PEM file.

    Raises:
        IntegrityError: it is none, of a kind that is not supported, or needs another password.
            A password that a key does not need is not looked at.
    """
    data = path.read_bytes()
    encrypted = b"ENCRYPTED" in data
    if encrypted and password is None:
        do = f"set {PASSWORD_VARIABLE}"
        raise IntegrityError("is closed by a password", where=str(path), do=do)
    try:
        key = serialization.load_pem_private_key(data, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if PUBLIC_MARK in data:
            what = "is the public half of a pair: it verifies, and signs nothing"
            raise IntegrityError(what, where=str(path), do=f"name {half(path, '.key')}") from error
        if encrypted:
            what = f"is not opened by the password in {PASSWORD_VARIABLE}, or is damaged"
            raise IntegrityError(what, where=str(path), do=OTHER_PASSWORD) from error
        what = f"is no private key that can be read: {said(error)}"
        raise IntegrityError(what, where=str(path), do=KEYGEN) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in HASHES:
        raise other_curve(path)
    return key


def read_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public key from a PEM file.

    Raises:
        IntegrityError: it is none, or of a kind that is not supported.
    """
    data = path.read_bytes()
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        if PRIVATE_MARK in data:
            what = "is the private half of a pair: it signs and stays secret"
            raise IntegrityError(what, where=str(path), do=f"name {half(path, '.pub')}") from error
        what = "is no public key in PEM form"
        raise IntegrityError(what, where=str(path), do=KEYGEN) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in HASHES:
        raise other_curve(path)
    return key


def half(path: Path, suffix: str) -> str:
    """Return the name that `keygen` gives to the other half of a pair."""
    named = path.suffix in (".key", ".pub") and path.suffix != suffix
    return str(path.with_suffix(suffix)) if named else f"the file NAME{suffix} of the pair"


def other_curve(path: Path) -> IntegrityError:
    what = "is no ECDSA key on P-256, P-384 or P-521"
    return IntegrityError(what, where=str(path), do=KEYGEN)
