"""Change a bundle by a seed: its JSON with digests mended, its members, or their headers."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from .bundles import BLOBS, forged, members_of, packed, patched
from .mutations import changed_bytes, changed_json

# The first leaves the cache by way of the entry of the group `cpu`, which is there by then.
PATHS = ("cpu/../../../x", "..", "../x", "../../x", "/x", "./x", "a/../../x", "x/", "", ".", "cpu")
NAMES = ("con", "nul.md", ".git", "a:b", "a\\..\\x", "CPU", "bundle.json", "README.md", "n" * 101)
TEXTS = (
    "x\nsigned by ci.pub",
    "\x1b[2J",
    "\u202e",
    "\x00",
    "n" * 5000,
    "é" * 99,
    "/".join("a" * 99),
)
HOSTILE = (*PATHS, *NAMES, *TEXTS)
LEVELS = ("facts", "facts", "config", "manifest", "model", "signature", "index")
# Name, mode, size, kind, link, magic and prefix in a header: where they begin, and their lengths.
FIELDS = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155))
NUMBERS = (b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0", b"-1", b"1_0", b"5", b"L", b"x")


def changed_bundle(data: bytes, rng: random.Random) -> bytes:
    """Change a value of the JSON at any level with digests mended, a member, or a header."""

    def mutated(value: Any) -> bytes:
        return changed_json(json.dumps(value).encode(), rng)

    match rng.randrange(10):
        case 0 | 1:
            return forged(data, facts=lambda facts: make_hostile(facts, rng))
        case 2 | 3 | 4:
            return forged(data, **{rng.choice(LEVELS): mutated})
        case 5 | 6:
            return packed(shuffled(members_of(data), rng))
        case 7:
            found = members_of(data)
            name = rng.choice(sorted(found))
            return packed(found | {name: changed_bytes(found[name], rng)})
        case _:
            blocks = range(0, len(data), 512)
            at = rng.choice([k for k in blocks if data[k + 257 : k + 262] == b"ustar"])
            field, length = rng.choice(FIELDS)
            text = rng.choice((*NUMBERS, b"../x", b"/x", rng.randbytes(12)))[:length]
            return data[:at] + patched(data[at : at + 512], field, text) + data[at + 512 :]


def make_hostile(facts: Any, rng: random.Random) -> None:
    """Put names, paths and texts into `bundle.json` that somebody chose to do harm."""
    group = rng.choice(facts["groups"])
    for _ in range(rng.choice((1, 1, 2))):
        holder = rng.choice((facts, group, group, rng.choice(group["files"])))
        key = rng.choice([key for key, value in holder.items() if isinstance(value, str)])
        holder[key] = rng.choice(HOSTILE)
    if rng.random() < 0.2:
        folder = rng.choice(HOSTILE)
        group["folder"] = folder
        for file in group["files"]:
            file["path"] = f"{folder}/{file['path'].rpartition('/')[2]}"


def shuffled(members: dict[str, bytes], rng: random.Random) -> dict[str, bytes]:
    """Swap the bytes of two members, rename, remove or add one, or change their order."""
    names = list(members)
    one, other = rng.sample(names, 2)
    match rng.randrange(5):
        case 0:
            members[one], members[other] = members[other], members[one]
        case 1:
            members[rng.choice(("../x", "/x", "x", BLOBS + "0" * 64, one + "x"))] = members.pop(one)
        case 2:
            del members[one]
        case 3:
            members[BLOBS + hashlib.sha256(b"more").hexdigest()] = b"more"
        case _:
            rng.shuffle(names)
            return {name: members[name] for name in names}
    return members
