"""Keys of the curves that signatures use, made once a process."""

from __future__ import annotations

from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec

CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}


def key_of(owner: str, curve: str = "P-256") -> ec.EllipticCurvePrivateKey:
    return made_key(owner, curve)


@cache
def made_key(owner: str, curve: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[curve])
