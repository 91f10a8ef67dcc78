"""Later runs take from earlier ones only what the same code made."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import shared
from .conftest import LONGEST
from .test_rooms import FLOOR, modules


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared, "KEPT", tmp_path / "kept")
    return tmp_path / "kept"


class Maker:
    """Fills a folder, and counts how often."""

    def __init__(self, fails: bool = False) -> None:
        self.calls, self.fails = 0, fails

    def __call__(self, folder: Path) -> int:
        self.calls += 1
        assert not list(folder.iterdir())
        (folder / "file").write_text(str(self.calls))
        if self.fails:
            raise ValueError("no space")
        return self.calls


def test_it_is_made_once_and_every_copy_may_be_changed(
    kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make = Maker()
    for _ in range(2):
        copy, value = shared.made_once(tmp_path_factory, "thing", make)
        assert ((copy / "file").read_text(), value, make.calls) == ("1", 1, 1)
        (copy / "file").write_text("changed")


def test_other_code_makes_it_again_and_leaves_nothing_old(
    kept: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    for calls, code in enumerate(("a", "b"), 1):
        monkeypatch.setattr(shared, "digest", lambda unused, code=code: code)
        copy, value = shared.made_once(tmp_path_factory, "thing", make)
        assert (value, (copy / "file").read_text()) == (calls, str(calls))
    assert {path.name for path in (kept / "thing").iterdir()} == {"b", "b.pickle"}


def test_what_failed_is_made_again(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match="no space"):
        shared.made_once(tmp_path_factory, "thing", Maker(fails=True))
    assert shared.made_once(tmp_path_factory, "thing", Maker())[1] == 1


def test_the_digest_is_of_every_module_and_of_the_shipped_weights() -> None:
    found = {path.relative_to(shared.ROOT) for path in shared.sources(frozenset())}
    assert {*modules()} <= found
    assert any(path.suffix == ".safetensors" for path in found)
    assert Path("tests/families/tiny.py") in found
    assert Path("tests/test_shared.py") not in found


def test_the_digest_of_an_export_leaves_out_only_rooms_above_the_families() -> None:
    rooms = {name.removesuffix(".py") for name in shared.AFTER_EXPORT}
    assert all(FLOOR[room] > FLOOR["families"] for room in rooms)
    every, some = (set(shared.sources(unused)) for unused in (frozenset(), shared.AFTER_EXPORT))
    assert {path.relative_to(shared.ROOT).parts[0] for path in every - some} == shared.AFTER_EXPORT
    assert shared.digest(shared.AFTER_EXPORT) != shared.digest(frozenset())


def test_a_changed_file_changes_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "ROOT", tmp_path)
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "edit.py").write_text("1")
    before = shared.digest.__wrapped__(frozenset())
    (tmp_path / "graph" / "test_edit.py").write_text("a test makes nothing")
    assert shared.digest.__wrapped__(frozenset()) == before
    (tmp_path / "graph" / "edit.py").write_text("2")
    assert shared.digest.__wrapped__(frozenset()) != before


def test_the_files_that_begin_first_are_there() -> None:
    for name in LONGEST:
        assert (shared.ROOT / "tests" / name).is_file()
