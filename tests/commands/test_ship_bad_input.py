"""The commands that ship engines, used carelessly or with a hostile bundle: one line, one code."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from arvg_trt.benchmarks.fuzz.bundles import (
    bundle_bytes,
    forged,
    plan,
    small_contents,
    target_group,
)
from arvg_trt.cli import cli
from arvg_trt.errors import IntegrityError, WorkspaceError
from arvg_trt.pipeline.bundle import license_texts
from arvg_trt.pipeline.ship import bundled_workspace, make_keys, unpack_file
from arvg_trt.runtime.bundle import trust
from arvg_trt.runtime.bundle.keys import private_pem, public_pem

from ..runtime.bundle.keys import key_of

LIE = "x\nsigned by ci.pub"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "SYSTEM_CONFIG", tmp_path / "etc.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ARVG_TRT_REQUIRE_KEY", raising=False)
    monkeypatch.delenv("ARVG_TRT_KEY_PASSWORD", raising=False)


def bundle(folder: Path, owner: str | None = None, **more: Any) -> Path:
    path = folder / "x.tar"
    path.write_bytes(bundle_bytes(folder, small_contents(**more), owner and key_of(owner)))
    return path


def keys(folder: Path, owner: str) -> tuple[Path, Path]:
    private, public = folder / f"{owner}.key", folder / f"{owner}.pub"
    private.write_bytes(private_pem(key_of(owner)))
    public.write_bytes(public_pem(key_of(owner).public_key()))
    return private, public


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def refused(code: int, problem: str, *args: object) -> str:
    found, out, err = run(*args)
    assert (found, out) == (code, "")
    assert problem in err and err.startswith("error: ") and err[:-1].isprintable()
    return err


def test_damaged_bundle_ends_each_command_with_its_own_code(tmp_path: Path) -> None:
    path = bundle(tmp_path, "ci")
    data = bytearray(path.read_bytes())
    data[data.index(b"an onnx graph")] ^= 1
    path.write_bytes(data)
    private, _ = keys(tmp_path, "ci")
    out = tmp_path / "out"
    refused(12, "model.onnx was changed", "verify", path)
    refused(12, "model.onnx was changed", "unpack", path, "-o", out)
    refused(12, "model.onnx was changed", "sign", path, "--key", private, "-o", out)
    assert not out.exists()
    assert path.read_bytes() == data
    code, text, _ = run("verify", path, "--json")
    assert code == 12 and json.loads(text)["error"]["kind"] == "IntegrityError"


def test_required_key_is_required_of_verify_and_unpack(tmp_path: Path) -> None:
    path = bundle(tmp_path)
    _, public = keys(tmp_path, "ci")
    out = tmp_path / "out"
    for args in (("verify", path), ("unpack", path, "-o", out)):
        refused(12, "is not signed, and a signature by ", *args, "--require-key", public)
        refused(12, "the required key cannot be read", *args, "--require-key", tmp_path / "no")
    bundle(tmp_path, "forger")
    refused(12, "is signed by another key", "unpack", path, "-o", out, "--require-key", public)
    assert not out.exists()
    bundle(tmp_path, "ci")
    code, text, _ = run("verify", path, "--require-key", public)
    assert code == 0 and f"signed by {public}\n" in text


def test_bundle_cannot_write_a_line_of_the_output(tmp_path: Path) -> None:
    """A name with a line break could say `signed by ci.pub` where nothing is signed."""
    data = bundle(tmp_path).read_bytes()
    path = tmp_path / "y.tar"
    for change in ({"name": LIE}, {"model": LIE}, {"tool": LIE}):
        path.write_bytes(forged(data, facts=lambda facts, change=change: facts.update(change)))
        refused(12, "has control characters", "verify", path)


def test_engine_of_another_version_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    path = bundle(tmp_path, engine=plan("1.8.0.1"))
    problem = "was built by version 1.8.0.1, not 1.7.0.25"
    refused(12, problem, "verify", path)
    refused(12, problem, "unpack", path, "-o", tmp_path / "out")
    refused(12, problem, "unpack", path, "-o", tmp_path / "out", "--group", "rtx")
    assert not (tmp_path / "out").exists()
    assert run("unpack", path, "-o", tmp_path / "out", "--group", "cpu")[0] == 0


@pytest.mark.parametrize("name", ["missing.tar", "", "x/y.tar"])
def test_missing_bundle_is_named(name: str, tmp_path: Path) -> None:
    code, _, err = run("verify", tmp_path / "no" / name)
    assert code in (2, 9) and len(err.splitlines()) == 1


def test_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    """The shell's `<(curl ...)` gives one."""
    reader, writer = os.pipe()
    try:
        refused(12, "is a pipe or a device", "verify", f"/dev/fd/{reader}")
    finally:
        os.close(reader)
        os.close(writer)


def test_unpack_never_writes_into_what_is_there(tmp_path: Path) -> None:
    path = bundle(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for name in ("link", "file", "folder"):
        refused(9, "is there already", "unpack", path, "-o", tmp_path / name)
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "file").read_text() == "kept"


def test_unpack_of_an_unknown_group_lists_those_there_are(tmp_path: Path) -> None:
    err = refused(
        9,
        "has no target group '../x'",
        "unpack",
        bundle(tmp_path),
        "-o",
        tmp_path / "o",
        "--group",
        "../x",
    )
    assert "it has rtx, cpu" in err


def test_unpack_of_more_than_the_disk_takes_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: few)
    with pytest.raises(WorkspaceError, match="has 0 MB free"):
        unpack_file(bundle(tmp_path), tmp_path / "deep" / "out", None, ())
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def with_reference(folder: Path, **more: Any) -> Path:
    files = {"export/model.onnx": b"an FP32 graph"}
    group = target_group("reference", "reference", files)
    return bundle(folder, more=[(group, files)], **more)


def test_workspace_of_a_bundle_is_made_once_and_may_have_more_files(tmp_path: Path) -> None:
    path = with_reference(tmp_path)
    folder, name = bundled_workspace(path, None, ())
    (folder / "validate").mkdir()
    (folder / "validate" / "report.json").write_text("{}")
    assert bundled_workspace(path, "int8", ()) == (folder, name) == (tmp_path / "x", "int8")


@pytest.mark.parametrize("spoiled", ["export/model.onnx", "README.md", "bundle.json"])
@pytest.mark.parametrize("way", ["changed", "lost", "link"])
def test_workspace_of_a_bundle_that_was_changed_is_refused(
    spoiled: str, way: str, tmp_path: Path
) -> None:
    """Its own manifest could be mended by whoever changes a graph; the bundle's digests cannot."""
    path = with_reference(tmp_path)
    folder, _ = bundled_workspace(path, None, ())
    file = folder / spoiled
    data = file.read_bytes()
    file.unlink()
    if way == "changed":
        file.write_bytes(data[:-1] + b"x")
    elif way == "link":
        (tmp_path / "same").write_bytes(data)
        file.symlink_to(tmp_path / "same")
    with pytest.raises(WorkspaceError, match="x: is there already, and not what this bundle"):
        bundled_workspace(path, None, ())


def test_workspace_of_a_bundle_below_a_link_is_refused(tmp_path: Path) -> None:
    path = with_reference(tmp_path)
    folder, _ = bundled_workspace(path, None, ())
    (folder / "export").rename(tmp_path / "export")
    (folder / "export").symlink_to(tmp_path / "export")
    with pytest.raises(WorkspaceError, match="not what this bundle unpacks to"):
        bundled_workspace(path, None, ())


def test_workspace_is_not_made_of_an_engine_unlike_its_group(tmp_path: Path) -> None:
    path = with_reference(tmp_path, engine=plan("1.8.0.1"))
    with pytest.raises(IntegrityError, match=r"was built by version 1\.8\.0\.1"):
        bundled_workspace(path, None, ())
    assert not (tmp_path / "x").exists()


# Keys.


def test_keys_are_never_written_over(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "ci")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes(), public.read_bytes()
    refused(9, "is there already", "keygen", tmp_path / "ci")
    private.unlink()
    refused(9, "is there already", "keygen", tmp_path / "ci")
    assert public.read_bytes() == before[1] and not private.exists()


def test_private_key_cannot_be_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "ci.key").symlink_to(tmp_path / "elsewhere")
    assert run("keygen", tmp_path / "ci")[0] == 9
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("call", [1, 2])
def test_full_disk_leaves_no_half_of_a_pair(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file that is opened for writing is the private key's, the second the public's."""
    fdopen, calls = os.fdopen, 0

    def full(descriptor: int, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.close(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fdopen(descriptor, *rest)

    monkeypatch.setattr(os, "fdopen", full)
    refused(9, "disk full: No space left", "keygen", tmp_path / "ci")
    assert calls == call
    assert not list(tmp_path.iterdir())


def test_password_that_no_key_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVG_TRT_KEY_PASSWORD", "x" * 1024)
    refused(12, "has 1024 bytes (set a password of at most 1023)", "keygen", tmp_path / "ci")
    assert not list(tmp_path.iterdir())


def test_password_of_any_bytes_opens_the_key_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARVG_TRT_KEY_PASSWORD", os.fsdecode(b"\xff\xfe caf\xc3\xa9"))
    private, _ = make_keys(tmp_path / "ci")
    path = bundle(tmp_path)
    assert run("sign", path, "--key", private)[0] == 0
    monkeypatch.setenv("ARVG_TRT_KEY_PASSWORD", "other")
    refused(12, "is not opened by the password in ARVG_TRT_", "sign", path, "--key", private)
    monkeypatch.delenv("ARVG_TRT_KEY_PASSWORD")
    refused(12, "is closed by a password", "sign", path, "--key", private)


def test_public_key_in_place_of_the_private_one_is_refused(tmp_path: Path) -> None:
    private, public = keys(tmp_path, "ci")
    path = bundle(tmp_path)
    before = path.read_bytes()
    said = (
        f"{public}: is the public half of a pair: it verifies, and signs nothing (name {private})"
    )
    refused(12, said, "sign", path, "--key", public)
    said = f"{private}: is the private half of a pair: it signs and stays secret (name {public})"
    refused(12, said, "verify", path, "--require-key", private)
    assert path.read_bytes() == before


# Licences.


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("a/LICENSE", "b/LICENSE"), "has the same name as a/LICENSE"),
        (("a/LICENSE", "b/license"), "has the same name as a/LICENSE"),
        (("con.txt",), "device on Windows"),
        (("a:b",), "a character that not every system takes"),
        (("\udcff.txt",), "a character that not every system takes"),
        ((".license",), "is hidden"),
        (("a/..",), "leaves its folder"),
        (("Cosmos-Mini-DI8x8.md",), "has the same name as the terms of cosmos-mini-di8x8"),
    ],
)
def test_licences_that_a_bundle_cannot_hold_are_refused(
    names: tuple[str, ...], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [Path(name) for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        if path.name != "..":
            path.write_text("terms")
    with pytest.raises(WorkspaceError, match=problem):
        license_texts("cosmos-mini-di8x8", paths)


def test_licences_of_shipped_weights_stand_beside_those_given(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("given")
    texts = license_texts("cosmos-mini-di8x8", [tmp_path / "LICENSE"])
    assert set(texts) == {"cosmos-mini-di8x8.md", "LICENSE"} and texts["LICENSE"] == b"given"
    assert not license_texts("var-d16", [])


def test_user_without_a_home_has_no_keys_and_is_told_to_name_a_cache() -> None:
    """A container may run as a number nobody has: there is neither HOME nor an entry."""
    if os.getuid():
        pytest.skip("root alone can act as a user that does not exist")
    program = (
        "import os\n"
        "from arvg_trt.runtime.bundle.trust import required_keys\n"
        "from arvg_trt.workspace.files import user_cache\n"
        "os.setuid(54321)\n"
        "print(required_keys())\n"
        "try: user_cache()\n"
        "except Exception as error: print(error)\n"
    )
    homes = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    homeless = {k: v for k, v in os.environ.items() if k not in homes}
    done = subprocess.run(
        [sys.executable, "-c", program], env=homeless, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "()",
        "the user 54321 has no home to keep files in (set ARVG_TRT_CACHE to a folder)",
    ]


def test_errors_of_a_bundle_have_their_own_code() -> None:
    assert IntegrityError.exit_code == 12
