"""The folder that bundles are unpacked to: shared, interrupted, full, read-only or not ours."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from arvg_trt.benchmarks.fuzz.bundles import small_contents, target_group
from arvg_trt.engines.bundle.write import write_bundle
from arvg_trt.errors import IntegrityError, WorkspaceError
from arvg_trt.runtime.bundle import cache
from arvg_trt.runtime.bundle.cache import (
    DAY,
    is_whole,
    remove_old,
    unpack_cached,
)
from arvg_trt.runtime.bundle.reader import Bundle
from arvg_trt.workspace.files import CACHE_VARIABLE, user_cache
from arvg_trt.workspace.locks import locked

from .other_users import open_to_others

NOBODY = 65534
ENGINE = "engines/int8/onnxruntime/model.onnx"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="root alone can act as another user")
LARGE = 8 * 2**20


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "x.tar", small_contents())
    return tmp_path / "x.tar"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A bundle whose unpacking takes long enough to be killed in it."""
    files = {
        "engines/int8/big/model.onnx": bytes(LARGE),
        "engines/int8/big/more.onnx": b"x" * LARGE,
    }
    group = target_group("big", "kit", files)
    write_bundle(tmp_path / "large.tar", small_contents(more=[(group, files)]))
    return tmp_path / "large.tar"


def unpack(path: Path, name: str = "cpu") -> Path:
    with Bundle(path) as bundle:
        (group,) = (group for group in bundle.facts.groups if group.name == name)
        return unpack_cached(bundle, group)


def whole(folder: Path, path: Path, name: str = "cpu") -> bool:
    """Compare with what was packed, apart from the code under test."""
    with Bundle(path) as bundle:
        (group,) = (group for group in bundle.facts.groups if group.name == name)
        wanted = {
            f.path: f.bytes for f in (bundle.facts_file, *bundle.facts.documents, *group.files)
        }
    found = {
        p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()
    }
    return found == wanted and (name != "cpu" or (folder / ENGINE).read_bytes() == b"an onnx graph")


def others(root: Path) -> list[str]:
    """Return what lies in the cache beside entries and their locks."""
    return [p.name for p in root.iterdir() if p.name.startswith(".")]


def test_group_is_unpacked_once(path: Path, tmp_path: Path) -> None:
    folder = unpack(path)
    assert whole(folder, path)
    before = (folder / ENGINE).stat()
    assert unpack(path) == folder
    assert (folder / ENGINE).stat().st_ino == before.st_ino
    assert folder.parent == tmp_path / "cache" / "bundles"
    assert unpack(path, "rtx") != folder


def test_cache_is_the_users_alone_whatever_the_umask(path: Path, tmp_path: Path) -> None:
    before = os.umask(0o002)  # of distributions where each user has a group
    try:
        unpack(path)
        unpack(path)
    finally:
        os.umask(before)
    for folder in (tmp_path / "cache", tmp_path / "cache" / "bundles"):
        assert folder.stat().st_mode & 0o777 == 0o700


def spoil_bytes(folder: Path) -> None:
    (folder / ENGINE).write_bytes(b"AN onnx graph")


def spoil_file_to_link(folder: Path) -> None:
    shutil.copy(folder / ENGINE, folder.parents[2] / "copy")
    (folder / ENGINE).unlink()
    (folder / ENGINE).symlink_to(folder.parents[2] / "copy")


def spoil_folder_to_link(folder: Path) -> None:
    inner = (folder / ENGINE).parent
    shutil.move(inner, folder.parents[2] / "moved")
    inner.symlink_to(folder.parents[2] / "moved")


def spoil_entry_to_link(folder: Path) -> None:
    shutil.move(folder, folder.parents[2] / "entry")
    folder.symlink_to(folder.parents[2] / "entry")


def spoil_entry_to_dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("/nowhere")


def spoil_entry_to_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def spoil_file_to_pipe(folder: Path) -> None:
    (folder / ENGINE).unlink()
    os.mkfifo(folder / ENGINE)


def spoil_file_to_folder(folder: Path) -> None:
    (folder / ENGINE).unlink()
    (folder / ENGINE).mkdir()


SPOILED: tuple[Callable[[Path], object], ...] = (
    spoil_bytes,
    spoil_file_to_link,
    spoil_folder_to_link,
    spoil_entry_to_link,
    spoil_entry_to_dangling_link,
    spoil_entry_to_file,
    spoil_file_to_pipe,
    spoil_file_to_folder,
    lambda folder: (folder / ENGINE).unlink(),
    lambda folder: (folder / ENGINE).write_bytes(b""),
    lambda folder: shutil.rmtree(folder / "engines"),
    lambda folder: (folder / "more.onnx").write_text("x"),
    lambda folder: (folder / "more").symlink_to("/etc"),
    lambda folder: (folder / "more").symlink_to("/nowhere"),
    lambda folder: shutil.rmtree(folder),
)


@pytest.mark.parametrize("spoil", SPOILED)
def test_entry_that_was_changed_is_made_anew(
    spoil: Callable[[Path], object], path: Path, tmp_path: Path
) -> None:
    folder = unpack(path)
    spoil(folder)
    assert unpack(path) == folder
    assert not folder.is_symlink() and whole(folder, path)
    assert not others(folder.parent)
    for moved in ("entry", "moved", "copy"):  # what a link led to stays as it was
        if (tmp_path / moved).exists():
            kept = (tmp_path / moved, *(tmp_path / moved).rglob("*"))
            assert any(place.is_file() for place in kept)


def test_links_within_the_cache_are_never_followed_to_remove(path: Path, tmp_path: Path) -> None:
    folder = unpack(path)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    shutil.rmtree(folder)
    folder.symlink_to(precious)
    unpack(path)
    assert (precious / "file").read_text() == "kept"


# Who may change the cache.


@pytest.mark.parametrize("place", ["cache", "cache/bundles"])
@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702, 0o1777])
def test_cache_that_others_may_change_is_refused(
    place: str, mode: int, path: Path, tmp_path: Path
) -> None:
    unpack(path)
    (tmp_path / place).chmod(mode)
    advice = rf"\(chmod go-w {tmp_path / place}, or set {CACHE_VARIABLE} "
    with pytest.raises(WorkspaceError, match=f"{place}: can be changed by other users {advice}"):
        unpack(path)


@as_root
@pytest.mark.parametrize("place", ["cache", "cache/bundles"])
def test_cache_of_another_user_is_refused(place: str, path: Path, tmp_path: Path) -> None:
    unpack(path)
    os.chown(tmp_path / place, NOBODY, NOBODY)
    with pytest.raises(WorkspaceError, match=f"{place}: belongs to the user {NOBODY}, not to 0"):
        unpack(path)


@as_root
def test_link_of_another_user_to_our_folder_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "ours")
    os.chown(tmp_path / "cache", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(WorkspaceError, match=f"cache: belongs to the user {NOBODY}"):
        unpack(path)
    assert not list((tmp_path / "ours").iterdir())


def test_link_of_our_own_to_another_disk_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    assert whole(unpack(path), path)


def test_cache_that_is_a_file_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(WorkspaceError, match=f"cache: is not a folder .set {CACHE_VARIABLE} to"):
        unpack(path)


def test_user_without_a_home_is_told_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(WorkspaceError, match=f"set {CACHE_VARIABLE} to a folder"):
        user_cache()


# Other processes; these run as users run them.


PROGRAM = """
    import os, sys
    from pathlib import Path
    from arvg_trt.runtime.bundle.reader import Bundle
    from arvg_trt.runtime.bundle.cache import unpack_cached
    if len(sys.argv) > 3:
        os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[3]))
    try:
        with Bundle(Path(sys.argv[1])) as bundle:
            group = next(g for g in bundle.facts.groups if g.name == sys.argv[2])
            print("opened", flush=True)
            print(unpack_cached(bundle, group))
    except Exception as error:
        print(type(error).__name__, error)
"""


def start(path: Path, name: str, *more: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), path, name, *more]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def last_line(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    return out.splitlines()[-1]


def test_processes_that_unpack_at_once_all_get_the_whole_entry(large: Path) -> None:
    processes = [start(large, "big") for _ in range(3)]
    folders = {last_line(process) for process in processes}
    (folder,) = folders
    assert whole(Path(folder), large, "big")
    assert not others(Path(folder).parent)


def test_process_killed_while_it_unpacks_leaves_what_the_next_one_removes(
    large: Path, tmp_path: Path
) -> None:
    root = tmp_path / "cache" / "bundles"
    process = start(large, "big")
    deadline = time.monotonic() + 60
    while not list(root.glob(".*.tmp/*")):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert others(root), "it had not begun"
    folder = unpack(large, "big")
    assert whole(folder, large, "big")
    assert not others(root)


def test_full_disk_leaves_no_entry(large: Path, tmp_path: Path) -> None:
    """Files cannot grow above 1 MB: another error than a full disk's, the same way out."""
    limit = 2**20
    process = start(
        large,
        "big",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")},
    )
    text = last_line(process)
    assert text.startswith(f"OSError [Errno {errno.EFBIG}]") and str(tmp_path / "cache") in text
    left = [p.name for p in (tmp_path / "cache" / "bundles").iterdir()]
    assert all(name.endswith(".lock") for name in left)
    assert whole(unpack(large, "big"), large, "big")


@as_root
def test_disk_that_fills_up_while_a_bundle_is_unpacked_leaves_no_entry(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 4 MB; the check of the room in advance is set aside, as by another writer."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    monkeypatch.setenv(CACHE_VARIABLE, str(disk / "cache"))
    try:
        with pytest.raises(WorkspaceError, match=r"bundles: has 4 MB free, and unpacking takes 17"):
            unpack(large, "big")
        monkeypatch.setattr(cache, "require_room", lambda *_: None)
        with pytest.raises(OSError, match="No space left") as caught:
            unpack(large, "big")
        assert caught.value.errno == errno.ENOSPC and caught.value.filename
        left = [p.name for p in (disk / "cache" / "bundles").iterdir()]
        assert all(name.endswith(".lock") for name in left)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_bundle_that_takes_more_than_the_disk_is_refused_before_it_is_unpacked(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One blob under many paths takes little in the tar and any size unpacked."""
    few = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: few)
    with pytest.raises(WorkspaceError, match="has 1 MB free, and unpacking takes 0"):
        unpack(path)
    assert not [p for p in (tmp_path / "cache" / "bundles").iterdir() if p.is_dir()]


# A cache that cannot be written.


@as_root
def test_cache_that_cannot_be_written_serves_what_is_whole_in_it(
    path: Path, tmp_path: Path
) -> None:
    folder = unpack(path)
    open_to_others(tmp_path)
    for place in (tmp_path / "cache", tmp_path / "cache" / "bundles"):
        place.chmod(0o755)
    assert last_line(start(path, "cpu", NOBODY)) == str(folder)
    text = last_line(start(path, "rtx", NOBODY))
    assert text.startswith("WorkspaceError") and "cannot be written" in text
    assert CACHE_VARIABLE in text
    spoil_bytes(folder)
    assert "this bundle is not whole in it" in last_line(start(path, "cpu", NOBODY))
    assert not others(folder.parent)


@as_root
def test_disk_that_is_read_only_serves_what_is_whole_on_it(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m,mode=0700", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        monkeypatch.setenv(CACHE_VARIABLE, str(disk / "cache"))
        folder = unpack(path)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert unpack(path) == folder
        with pytest.raises(WorkspaceError, match="cannot be written, and this bundle is not"):
            unpack(path, "rtx")
        monkeypatch.setenv(CACHE_VARIABLE, str(disk / "other"))
        with pytest.raises(WorkspaceError, match=r"other: .*Read-only file") as caught:
            unpack(path)
        assert caught.value.do == f"set {CACHE_VARIABLE} to another folder"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# What is in a bundle.


def test_damaged_bundle_leaves_no_entry(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"an onnx graph")] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{ENGINE} was changed"):
        unpack(path)
    assert [p.suffix for p in (tmp_path / "cache" / "bundles").iterdir()] == [".lock"]


def test_engine_unlike_its_group_is_not_unpacked(tmp_path: Path) -> None:
    write_bundle(tmp_path / "x.tar", small_contents(engine=b"vtrt of nothing"))
    with pytest.raises(IntegrityError, match="is no engine of TensorRT for RTX"):
        unpack(tmp_path / "x.tar", "rtx")
    assert [p.suffix for p in (tmp_path / "cache" / "bundles").iterdir()] == [".lock"]


def test_bundles_that_differ_in_a_file_have_entries_of_their_own(path: Path) -> None:
    first = unpack(path)
    write_bundle(path, small_contents(documents={"README.md": b"# Another\n"}))
    assert unpack(path) != first


def test_sized_and_hashed_alike_is_whole_only_with_all_files(path: Path) -> None:
    folder = unpack(path)
    with Bundle(path) as bundle:
        files = (bundle.facts_file, *bundle.facts.documents, *bundle.facts.groups[1].files)
        assert is_whole(folder, files)
        assert not is_whole(folder, files[1:])
        assert not is_whole(folder, (*files, msgspec.structs.replace(files[0], path="x")))
        assert not is_whole(folder / "missing", files)


# Age.


def aged(folder: Path, days: float) -> Path:
    then = time.time() - days * DAY
    os.utime(folder, (then, then))
    return folder


def test_entries_that_nobody_opened_for_a_month_are_removed(path: Path) -> None:
    old, new = unpack(path), unpack(path, "rtx")
    aged(old, 31), aged(new, 29)
    assert remove_old(old.parent) == [old]
    assert not old.exists() and whole(new, path, "rtx")


def test_opening_an_entry_makes_it_young(path: Path) -> None:
    folder = aged(unpack(path), 31)
    unpack(path)
    assert remove_old(folder.parent) == []


def test_what_killed_processes_left_is_removed_by_age_with_no_lock_more(path: Path) -> None:
    folder = unpack(path)
    left = folder.with_name(f".{folder.name}.abc123_x.tmp")
    left.mkdir()
    aged(left, 31)
    before = {p.name for p in folder.parent.glob("*.lock")}
    assert remove_old(folder.parent) == [left]
    assert {p.name for p in folder.parent.glob("*.lock")} == before


def test_entry_that_is_being_unpacked_is_not_removed(path: Path) -> None:
    folder = aged(unpack(path), 31)
    with locked(cache.lock_of(folder)):
        assert remove_old(folder.parent) == []
    assert remove_old(folder.parent) == [folder]


def test_entry_opened_while_its_lock_is_waited_for_is_not_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = aged(unpack(path), 31)
    flock = fcntl.flock

    def opened_just_before(stream: object, flags: int) -> None:
        os.utime(folder)
        flock(stream, flags)

    monkeypatch.setattr(fcntl, "flock", opened_just_before)
    assert remove_old(folder.parent) == []
    assert whole(folder, path)


def test_folders_of_others_in_the_same_place_are_never_removed(path: Path) -> None:
    """A user may point the variable at a folder that holds more than the cache."""
    root = unpack(path).parent
    mine = [root / "photos", root / ".config", root / ("0" * 32), root / f"x{'0' * 32}-cpu"]
    for folder in mine:
        folder.mkdir()
        aged(folder, 1000)
    (root / f"{'0' * 32}-link").symlink_to(root / "photos")
    assert remove_old(root) == []
    assert all(folder.is_dir() for folder in mine)


def test_names_of_entries_are_those_that_cleaning_knows(path: Path) -> None:
    folder = unpack(path)
    assert cache.ENTRY.fullmatch(folder.name)
    assert re.fullmatch(r"[0-9a-f]{32}-cpu", folder.name)
