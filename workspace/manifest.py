"""Define the manifest of a stage: what it read, was asked, wrote and measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from .files import UNDECODABLE, atomic_write, digest_files, encode_json, sha256_file

MANIFEST = "manifest.json"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Record what a stage read, was asked, wrote and measured.

    ``inputs`` and ``outputs`` map a relative name to its sha256; ``results`` holds measurements
    and is not part of the key.
    """

    stage: str
    inputs: dict[str, str]
    options: dict[str, Any]
    versions: dict[str, str]
    outputs: dict[str, str] = {}
    results: dict[str, Any] = {}
    schema: Literal["arvg-trt/manifest/v1"] = "arvg-trt/manifest/v1"

    def key(self) -> str:
        """Return the digest of everything that decides the outputs."""
        body = {
            "stage": self.stage,
            "inputs": dict(sorted(self.inputs.items())),
            "options": self.options,
            "versions": dict(sorted(self.versions.items())),
        }
        return hashlib.sha256(msgspec.json.encode(body, order="deterministic")).hexdigest()

    def as_inputs(self) -> dict[str, str]:
        """Return the outputs as the inputs of a later stage, named `STAGE/FILE`."""
        return {f"{self.stage}/{name}": digest for name, digest in self.outputs.items()}


def is_up_to_date(folder: Path, wanted: Manifest) -> bool:
    """Return whether `folder` holds what `wanted` would make: same key, same digests."""
    try:
        written = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, *UNDECODABLE):
        return False
    return written.key() == wanted.key() and all(
        (folder / name).is_file() and sha256_file(folder / name) == digest
        for name, digest in written.outputs.items()
    )


def write_manifest(folder: Path, manifest: Manifest, results: Mapping[str, Any]) -> Manifest:
    """Add the digest of every file of `folder` to the manifest, and write it there."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST]
    done = msgspec.structs.replace(
        manifest, outputs=digest_files(folder, files), results=dict(results)
    )
    atomic_write(folder / MANIFEST, encode_json(done))
    return done
