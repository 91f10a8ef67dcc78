"""Say what built the engines of a bundle, and which size of images those of a tokenizer take."""

from __future__ import annotations

import msgspec

from ...workspace.files import UNDECODABLE
from ...workspace.manifest import MANIFEST
from ..sessions.placement import TITLES
from .layout import BLOBS, BundleFacts, TargetGroup
from .reader import Bundle

MOST_BYTES = 2**24  # of a manifest


class _Options(msgspec.Struct, frozen=True):
    image_size: int | None = None


class _Built(msgspec.Struct, frozen=True):
    options: _Options = _Options()


def builders(facts: BundleFacts) -> dict[str, str]:
    """Return what built each group of engines, with its version, where engines depend on it."""
    return {
        group.name: f"{TITLES[group.kind]} {group.version}"
        for group in facts.groups
        if group.kind in TITLES and group.version
    }


def image_sizes(bundle: Bundle) -> dict[str, int]:
    """Return the side of the images that engines take, by group, where their manifest has it."""
    if bundle.facts.kind != "tokenizer":
        return {}
    groups = [each for each in bundle.facts.groups if each.kind.startswith("tensorrt")]
    found = {group.name: image_size(bundle, group) for group in groups}
    return {name: size for name, size in found.items() if size is not None}


def image_size(bundle: Bundle, group: TargetGroup) -> int | None:
    """Return the side of the images of one group; None where its manifest does not say it."""
    path = f"{group.folder}/{MANIFEST}"
    file = next((file for file in group.files if file.path == path), None)
    if file is None or not 0 < file.bytes <= MOST_BYTES:
        return None
    with bundle.blobs.mapped(BLOBS + file.sha256) as data:
        try:
            return msgspec.json.decode(bytes(data), type=_Built).options.image_size
        except UNDECODABLE:
            return None
