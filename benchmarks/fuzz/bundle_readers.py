"""Read bundles and packed folders as commands do; fail on what changed ones must never do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from ...engines.packed.write import pack_folder
from ...runtime.bundle.cache import unpack_cached
from ...runtime.bundle.keys import generate_key
from ...runtime.bundle.reader import Bundle
from ...runtime.packed.layout import INDEX_FILE, WEIGHTS_FILE, read_index
from ...runtime.packed.open import expanded
from ...workspace.files import CACHE_VARIABLE
from .bundles import bundle_bytes, small_contents
from .examples import product

NAME = "shipped.tar"


def bundle_readers(scratch: Path) -> dict[str, tuple[bytes, Callable[[Path], object]]]:
    """Return a signed bundle, read with and without its key required.

    With the key, what is read must be what was signed; without, what the bundle says of itself.
    """
    contents, key = small_contents(), generate_key()
    data = bundle_bytes(scratch, contents, key)
    keys = (("its key", key.public_key()),)
    signed = {path: sha256(source) for path, source in contents.sources.items()}

    def read(folder: Path) -> dict[str, str]:
        before = listing(folder)
        try:
            with mock.patch.dict(os.environ, {CACHE_VARIABLE: str(folder / "cache")}):
                return read_bundle(folder)
        finally:
            assert listing(folder) == before, "written outside of the cache and the output"

    def read_signed(folder: Path) -> None:
        with Bundle(folder / NAME) as bundle:
            bundle.require_signature(keys)
        found = read(folder)
        assert {path: found.get(path) for path in signed} == signed, "other files than were signed"
        assert len(found) == len(signed) + 1, "more files than were signed, and bundle.json"

    return {"bundle": (data, read_signed), "bundle unsigned": (data, read)}


Beside = tuple[tuple[str, bytes], ...]


def packed_readers(
    scratch: Path,
) -> tuple[tuple[str, bytes, Callable[[Path], object], Beside], ...]:
    """Return the index and the weights of a packed folder, each beside the other.

    What is read must be what was packed: the graph has its digest in the index.
    """
    model = product().SerializeToString()
    source, packed = scratch / "graphs", scratch / "packed"
    for folder in (source, packed):
        folder.mkdir()
    (source / "model.onnx").write_bytes(model)
    pack_folder(source, packed, {})
    index, weights = ((packed / name).read_bytes() for name in (INDEX_FILE, WEIGHTS_FILE))

    def read(folder: Path) -> None:
        before = listing(folder)
        try:
            with mock.patch.dict(os.environ, {CACHE_VARIABLE: str(folder / "cache")}):
                found = digests(expanded(folder))
        finally:
            assert listing(folder) == before, "written outside of the cache"
        known = {file.path: file.sha256 for file in read_index(folder).files}
        assert known.items() <= found.items(), "the cache has other files"

    return (
        ("packed index", index, read, ((WEIGHTS_FILE, weights),)),
        ("packed weights", weights, read, ((INDEX_FILE, index),)),
    )


def read_bundle(folder: Path) -> dict[str, str]:
    """Verify a bundle, and unpack it to `out` and each group to the cache; return the digests."""
    with Bundle(folder / NAME) as bundle:
        bundle.verify()
        assert said(bundle).isprintable(), "it says more than one line"
        bundle.extract((bundle.facts_file, *bundle.facts.files), folder / "out")
        found = digests(folder / "out")
        assert found == bundle.digests(), "what is unpacked is not what it says"
        for group in reversed(bundle.facts.groups):
            unpacked = unpack_cached(bundle, group)
            assert unpacked.parent == folder / "cache" / "bundles", "unpacked elsewhere"
            cached = digests(unpacked)
            assert cached.items() <= found.items(), "the cache has other files"
            assert {file.path for file in group.files} <= set(cached), "the cache lacks a file"
        return found


def said(bundle: Bundle) -> str:
    """Return what the commands print of a bundle."""
    facts = bundle.facts
    groups = [part for g in facts.groups for part in (g.name, g.version, g.gpu, *g.targets)]
    return " ".join((facts.name, facts.model, *groups, *(s.hint for s in bundle.signatures)))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def sha256(source: Path | bytes) -> str:
    data = source if isinstance(source, bytes) else source.read_bytes()
    return hashlib.sha256(data).hexdigest()


def listing(folder: Path) -> set[str]:
    """Return what lies around a folder, and in it but where a bundle may be unpacked."""
    around = [path for parent in list(folder.parents)[:2] for path in parent.iterdir()]
    inside = [path for path in folder.iterdir() if path.name not in ("out", "cache")]
    return {str(path) for path in (*around, *inside)}
