"""Paths of a bundle: each stays below its folder and is one file, on every system."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.benchmarks.fuzz.bundles import small_contents
from arvg_trt.engines.bundle.contents import bundle_file
from arvg_trt.errors import IntegrityError
from arvg_trt.runtime.bundle.layout import (
    MOST_FILES,
    MOST_GROUPS,
    BundleFacts,
    check_facts,
    path_problem,
)

GOOD = (
    "README.md",
    "engines/int8/onnxruntime/decoder.onnx",
    "a.b.c/d-e_f+g.onnx",
    "Lizenz der Gewichte.txt",
    "лицензия/重み.txt",
    "é.txt",
    "console/auxiliary/nul_/com10",
    "a" * 200,
    "/".join("abcdefghij" * 3),
)
BAD = (
    *(
        "",
        "/",
        ".",
        "..",
        "../x",
        "a/../x",
        "a/..",
        "/etc/passwd",
        "//x",
        "a//b",
        "a/",
        "./a",
        "a/.",
    ),
    *("\\x", "..\\x", "a\\..\\x", "C:", "C:x", "c:/x", "\\\\host\\x", "a:stream", "~\x00", "a\nb"),
    *("a\tb", "\x1b[2J", "a\x7f", "a\u202eb", "a\u200db", "a\ufeff", "a\u2028b", "\ud800"),
    *("a*", "a?", 'a"', "<a", "a>", "a|b", "a.", "a ", " a", "a. ", "a ./b", "a /b", "..."),
    *("con", "CON", "Con.txt", "nul", "nul.tar.gz", "aux/x", "x/prn", "com1", "LPT9.engine"),
    *("com¹", "conin$", "CONOUT$", "nul .txt", ".git/config", ".gitattributes", "a/.b", ".x"),
    *("a" * 201, "é" * 101, "重" * 67, "/".join(["abcdefgh"] * 31), "/".join(["a" * 150] * 7)),
)


def facts_of(paths: Sequence[str]) -> BundleFacts:
    documents = tuple(bundle_file(path, b"x") for path in paths)
    return msgspec.structs.replace(small_contents().facts, documents=documents)


@pytest.mark.parametrize("path", GOOD)
def test_path_that_every_system_takes_is_accepted(path: str) -> None:
    assert path_problem(path) is None
    check_facts(facts_of([path]), "x")


@pytest.mark.parametrize("path", BAD)
def test_path_that_some_system_takes_otherwise_is_refused(path: str) -> None:
    assert path_problem(path) is not None
    with pytest.raises(IntegrityError) as caught:
        check_facts(facts_of([path]), "x.tar")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.txt", "a.txt"),
        ("a.txt", "A.TXT"),
        ("x/a", "X/b"),
        ("é.txt", "e\u0301.txt"),
        ("É.txt", "e\u0301.txt"),
        ("straße", "STRASSE"),
        ("ﬁle", "file"),
        ("İ", "i\u0307"),
        ("\u1e9e", "ss"),
        ("a\u0345\u0301", "a\u0301\u0345"),
        ("a", "a/b"),
        ("a/b", "A"),
        ("bundle.json", "z"),
        ("Bundle.JSON", "z"),
        ("bundle.json/x", "z"),
    ],
)
def test_paths_that_are_one_on_some_system_are_refused(one: str, other: str) -> None:
    if one == "x/a":  # folders may differ in case as long as no file does: both stay where they are
        check_facts(facts_of([one, other]), "x")
        return
    for pair in ((one, other), (other, one)):
        with pytest.raises(IntegrityError, match=r"is there twice|lies below a file"):
            check_facts(facts_of(pair), "x")


def test_too_many_files_and_groups_are_refused() -> None:
    many = facts_of([f"{k}.md" for k in range(MOST_FILES + 1)])
    with pytest.raises(IntegrityError, match="has more than"):
        check_facts(many, "x")
    facts = facts_of([])
    groups = facts.groups[:1] * (MOST_GROUPS + 1)
    with pytest.raises(IntegrityError, match="has more than"):
        check_facts(msgspec.structs.replace(facts, groups=groups), "x")


def same_on_some_system(one: str, other: str) -> bool:
    """Return whether a file system that folds case or composes letters takes two names for one."""
    forms = [lambda s, f=f: unicodedata.normalize(f, s) for f in ("NFC", "NFD")]
    folds = [str, str.lower, str.upper, str.casefold]
    return any(form(fold(one)) == form(fold(other)) for form in forms for fold in folds)


NAMES = st.text(st.sampled_from("aAäÄßs.\u0301 éİı/\\:x"), min_size=1, max_size=6) | st.text(
    max_size=12
)


@given(paths=st.lists(NAMES | st.sampled_from(GOOD + BAD), max_size=4))
@settings(max_examples=400, deadline=None, database=None)
def test_accepted_paths_stay_below_their_folder_and_apart(
    paths: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        check_facts(facts_of(paths), "x")
    except IntegrityError:
        return
    folder = tmp_path_factory.getbasetemp() / "below"
    for path in paths:
        target = folder.joinpath(*path.split("/"))
        assert target.is_relative_to(folder) and target != folder
        assert Path(str(target)).resolve() == folder.resolve() / path
        path.encode()  # a name of letters that no file system could write is none
    for k, one in enumerate(paths):
        assert not any(same_on_some_system(one, other) for other in paths[:k])
