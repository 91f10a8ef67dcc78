"""The keys that a device requires: read from every place, and never taken for none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arvg_trt.benchmarks.fuzz.bundles import small_contents
from arvg_trt.engines.bundle.write import sign_bundle, write_bundle
from arvg_trt.errors import IntegrityError
from arvg_trt.runtime.bundle import trust
from arvg_trt.runtime.bundle.keys import public_pem
from arvg_trt.runtime.bundle.reader import Bundle
from arvg_trt.runtime.bundle.trust import (
    KEYS_VARIABLE,
    require_trust,
    required_keys,
    system_config,
    user_config,
)

from .keys import key_of
from .other_users import open_to_others

NOBODY = 65534


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a configuration: what this machine has does not count."""
    monkeypatch.setattr(trust, "SYSTEM_CONFIG", tmp_path / "etc" / "config.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)


def test_configurations_lie_where_each_system_keeps_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On Windows /etc would be a folder of the drive that any user may make."""
    monkeypatch.setenv("APPDATA", str(tmp_path / "roaming"))
    monkeypatch.setenv("PROGRAMDATA", str(tmp_path / "program"))
    name = Path("arvg-trt/config.toml")
    assert system_config("linux") == Path("/etc") / name
    assert system_config("win32") == tmp_path / "program" / name
    assert user_config("linux") == tmp_path / "home" / name
    assert user_config("win32") == tmp_path / "roaming" / name


@pytest.fixture
def system(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "config.toml"


@pytest.fixture
def user(tmp_path: Path) -> Path:
    (tmp_path / "home" / "arvg-trt").mkdir(parents=True)
    return tmp_path / "home" / "arvg-trt" / "config.toml"


def public(folder: Path, owner: str) -> Path:
    path = folder / f"{owner}.pub"
    path.write_bytes(public_pem(key_of(owner).public_key()))
    return path


def names() -> list[list[str]]:
    return [[Path(name).name for name, _ in keys] for keys in required_keys()]


def bundle(folder: Path, *owners: str) -> Path:
    path = folder / "x.tar"
    write_bundle(path, small_contents())
    for owner in owners:
        with Bundle(path) as opened:
            sign_bundle(opened, path, key_of(owner))
    return path


def trusted(path: Path, *options: Path) -> tuple[str, ...]:
    with Bundle(path) as opened:
        return require_trust(opened, options)


def test_without_a_key_anywhere_none_is_required(tmp_path: Path) -> None:
    assert required_keys() == ()
    assert trusted(bundle(tmp_path)) == ()


def test_every_place_counts_and_names_lie_beside_its_file(
    tmp_path: Path, system: Path, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public(system.parent, "a"), public(user.parent, "b")
    system.write_text('require_keys = ["a.pub"]')
    user.write_text('require_keys = ["b.pub"]')
    listed = [public(tmp_path, "c"), public(tmp_path, "d")]
    monkeypatch.setenv(KEYS_VARIABLE, os.pathsep.join(map(str, listed)))
    assert names() == [["a.pub"], ["b.pub"], ["c.pub", "d.pub"]]
    assert len(required_keys([public(tmp_path, "e")])) == 4


def test_no_place_weakens_another(
    tmp_path: Path, system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write_text(f'require_keys = ["{public(tmp_path, "admin")}"]')
    mine = public(tmp_path, "mine")
    monkeypatch.setenv(KEYS_VARIABLE, str(mine))
    for owners in (("mine",), ("admin",), ()):
        with pytest.raises(IntegrityError):
            trusted(bundle(tmp_path, *owners), mine)
    found = trusted(bundle(tmp_path, "admin", "mine"), mine)
    assert [Path(name).name for name in found] == ["admin.pub", "mine.pub"]


def test_one_key_of_a_place_is_enough(tmp_path: Path, system: Path) -> None:
    keys = [str(public(tmp_path, owner)) for owner in ("old", "new")]
    system.write_text(f"require_keys = {keys}")
    assert trusted(bundle(tmp_path, "new")) == (keys[1],)


def test_configuration_that_names_no_keys_requires_none(system: Path, user: Path) -> None:
    system.write_text("")
    user.write_text("require_keys = []")
    assert required_keys() == ()


BAD = {
    "wrong TOML": "require_keys = [",
    "text for a list": 'require_keys = "a.pub"',
    "number": "require_keys = [1]",
    "another name": 'require_key = ["a.pub"]',
    "key twice": "require_keys = []\nrequire_keys = []",
    "table": "[require_keys]\nx = 1",
    "nested": f"x = {'[' * 5000}",
    "control characters": 'require_keys = ["\x1b"]',
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("place", ["system", "user"])
def test_configuration_that_cannot_be_read_is_refused(
    case: str, place: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(place)
    path.write_text(BAD[case])
    refused(path, "cannot be read")


def refused(path: Path, problem: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        required_keys()
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and problem in text
    assert text.isprintable()


def test_configuration_of_bytes_that_are_no_text_is_refused(system: Path) -> None:
    system.write_bytes(b'require_keys = ["\xff.pub"]')
    refused(system, "cannot be read")


def test_configuration_that_is_a_folder_is_refused(system: Path) -> None:
    system.mkdir()
    refused(system, "cannot be read")


def test_configuration_below_a_file_is_refused(system: Path) -> None:
    system.parent.rmdir()
    system.parent.write_text("")
    refused(system, "cannot be read")


def test_configuration_whose_link_leads_nowhere_is_refused(system: Path) -> None:
    """It may lie on a disk that is not mounted yet."""
    system.symlink_to("/nowhere/config.toml")
    refused(system, "a link that leads nowhere")
    system.unlink()
    system.parent.rmdir()
    system.parent.symlink_to("/nowhere")
    refused(system, "a link that leads nowhere")
    system.parent.unlink()
    assert required_keys() == ()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to read everything for a moment."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can act as another user")
def test_configuration_without_the_right_to_read_it_is_refused(
    system: Path, tmp_path: Path
) -> None:
    open_to_others(tmp_path)
    system.write_text('require_keys = ["a.pub"]')
    key = public(system.parent, "a")
    system.chmod(0o600)
    with as_nobody():
        refused(system, "cannot be read")
    system.chmod(0o644)
    key.chmod(0o600)
    with as_nobody():
        refused(key, "the required key cannot be read")


def test_key_that_is_named_and_missing_is_refused(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.write_text('require_keys = ["a.pub"]')
    refused(system.parent / "a.pub", "the required key cannot be read")
    system.unlink()
    monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path / "b.pub"))
    refused(tmp_path / "b.pub", "the required key cannot be read")
    monkeypatch.delenv(KEYS_VARIABLE)
    with pytest.raises(IntegrityError, match=r"c\.pub: the required key cannot be read"):
        required_keys([tmp_path / "c.pub"])


@pytest.mark.parametrize("data", [b"", b"no key", b"\xff" * 50])
def test_key_that_is_none_is_refused_beside_a_good_one(
    data: bytes, system: Path, tmp_path: Path
) -> None:
    good = public(tmp_path, "good")
    (tmp_path / "bad.pub").write_bytes(data)
    system.write_text(f'require_keys = ["{good}", "{tmp_path}/bad.pub", ""]')
    refused(tmp_path / "bad.pub", "is no public key")


@pytest.mark.parametrize("value", [os.pathsep, os.pathsep * 3])
def test_variable_of_names_that_are_all_empty_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`$A:$B` is that when neither is set."""
    monkeypatch.setenv(KEYS_VARIABLE, value)
    with pytest.raises(IntegrityError, match=f"{KEYS_VARIABLE}: names no key"):
        required_keys()


def test_empty_variable_requires_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "")
    assert required_keys() == ()


def test_user_without_a_home_has_the_systems_keys(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    public(system.parent, "a")
    system.write_text('require_keys = ["a.pub"]')
    assert names() == [["a.pub"]]
