"""Find the keys by which a bundle must be signed on this device.

The administrator's configuration, the user's, the environment and an option each may name public
keys. A bundle must be signed by one key of each of them, so that none weakens another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from ...errors import IntegrityError
from ...workspace.files import UNDECODABLE, said
from .keys import read_public_key
from .reader import Bundle

KEYS_VARIABLE = "ARVG_TRT_REQUIRE_KEY"
CONFIG_NAME = Path("arvg-trt/config.toml")
KeySet = tuple[tuple[str, ec.EllipticCurvePublicKey], ...]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hold a device's configuration; paths are relative to its file."""

    require_keys: tuple[str, ...] = ()


def system_config(platform: str = sys.platform) -> Path:
    """Return where the administrator's configuration lies."""
    if platform == "win32":  # where /etc would be a folder of the drive that any user may make
        return Path(os.environ.get("PROGRAMDATA", "C:/ProgramData")) / CONFIG_NAME
    return Path("/etc") / CONFIG_NAME


SYSTEM_CONFIG = system_config()


def required_keys(option: Sequence[Path] = ()) -> tuple[KeySet, ...]:
    """Return the sets of public keys that must each have signed, those of `option` last.

    Raises:
        IntegrityError: a configuration or a key cannot be read. A key that is named and missing
            is never taken for a key that is not required.
    """
    sets = [config_keys(path) for path in (SYSTEM_CONFIG, user_config())]
    sets.append(environment_keys())
    sets.append(list(option))
    return tuple(tuple((str(path), load_key(path)) for path in paths) for paths in sets if paths)


def environment_keys() -> list[Path]:
    """Return the keys that the environment names; none where the variable is empty.

    Raises:
        IntegrityError: it lists nothing, as of other variables that are not set.
    """
    listed = os.environ.get(KEYS_VARIABLE, "")
    paths = [Path(part) for part in listed.split(os.pathsep) if part]
    if listed and not paths:
        do = "name public keys, or unset it"
        raise IntegrityError("names no key", where=KEYS_VARIABLE, do=do)
    return paths


def user_config(platform: str = sys.platform) -> Path | None:
    """Return where the user's configuration lies; None for a user without a home."""
    base = os.environ.get("APPDATA" if platform == "win32" else "XDG_CONFIG_HOME")
    if base:
        return Path(base) / CONFIG_NAME
    try:
        return Path.home() / ".config" / CONFIG_NAME
    except RuntimeError:
        return None


def config_keys(path: Path | None) -> list[Path]:
    """Return the keys that a configuration names; none where there is no such file.

    Raises:
        IntegrityError: it cannot be read. A link that leads nowhere, as before a disk is mounted,
            is no file that is not there.
    """
    if path is None:
        return []
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=Config)
    except FileNotFoundError as error:
        if not any(each.is_symlink() and not each.exists() for each in (path, *path.parents)):
            return []
        raise unreadable(path, "it is a link that leads nowhere") from error
    except (OSError, *UNDECODABLE) as error:
        raise unreadable(path, said(error)) from error
    return [path.parent / key for key in config.require_keys]


def unreadable(path: Path, reason: str) -> IntegrityError:
    do = 'write require_keys = ["KEY.pub"]'
    return IntegrityError(f"cannot be read: {reason}", where=str(path), do=do)


def load_key(path: Path) -> ec.EllipticCurvePublicKey:
    try:
        return read_public_key(path)
    except OSError as error:
        what = f"the required key cannot be read: {error.strerror}"
        raise IntegrityError(what, where=str(path), do="name the public key's file") from error


def require_trust(bundle: Bundle, option: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the names of the required keys that signed a bundle, at least one of each set.

    Raises:
        IntegrityError: one of them did not.
    """
    signed = [name for keys in required_keys(option) for name in bundle.require_signature(keys)]
    return tuple(dict.fromkeys(signed))


def refuse_unsigned(path: Path, option: Sequence[Path] = ()) -> None:
    """Raise IntegrityError for what is no bundle, and so not signed, where a key is required."""
    keys = [name for names in required_keys(option) for name, _ in names]
    if keys:
        what = f"is no bundle, and a signature by {', '.join(keys)} is required"
        raise IntegrityError(what, where=str(path), do="name a signed bundle")
