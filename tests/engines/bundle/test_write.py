"""A bundle that is written: the same bytes every time, and read back as it was, or not at all."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.benchmarks.fuzz.bundles import (
    forged,
    members_of,
    plan,
    small_contents,
    target_group,
)
from arvg_trt.engines.bundle.contents import Contents, bundle_file, folders_of_engines
from arvg_trt.engines.bundle.write import sign_bundle, write_bundle
from arvg_trt.errors import IntegrityError, WorkspaceError
from arvg_trt.runtime.bundle.archive import read_members
from arvg_trt.runtime.bundle.layout import BundleFacts, facts_problem
from arvg_trt.runtime.bundle.reader import Bundle

from ...runtime.bundle.keys import key_of


def read_back(path: Path, folder: Path) -> tuple[BundleFacts, dict[str, bytes]]:
    """Verify and unpack a bundle; return what it says and its files but `bundle.json`."""
    with Bundle(path) as bundle:
        bundle.verify()
        bundle.extract((bundle.facts_file, *bundle.facts.files), folder)
        facts = bundle.facts
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*") if p.is_file()
    }
    assert msgspec.json.decode(found.pop("bundle.json"), type=BundleFacts) == facts
    return facts, found


SIGNED = b"dsseEnvelope"
NAMES = st.text(st.sampled_from("abcXYZ09-_äß重"), min_size=1, max_size=8)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".onnx")
DATA = st.binary(max_size=40) | st.sampled_from((b"", b"{}", bytes(511), bytes(512), bytes(513)))
WORDS = st.sampled_from(("", "INT8", "INT8+FP16", "FP8, FP16", "INT4"))


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    """Contents of one to three groups and some documents, each of a few bytes."""
    documents = {
        f"docs/{path}": data
        for path, data in draw(st.dictionaries(PATHS, DATA, max_size=3)).items()
    }
    groups, sources = [], dict(documents)
    for k in range(draw(st.integers(1, 3))):
        files: Mapping[str, bytes] = {
            f"engines/g{k}/{path}": data
            for path, data in draw(st.dictionaries(PATHS, DATA, min_size=1, max_size=3)).items()
        }
        group = target_group(
            f"g{k}", draw(st.sampled_from(("onnxruntime", "kit", "reference"))), files
        )
        groups.append(
            msgspec.structs.replace(
                group,
                folder=f"engines/g{k}",
                precision=draw(WORDS),
                version=draw(st.sampled_from(("", "1.23.0"))),
            )
        )
        sources |= files
    facts = msgspec.structs.replace(
        small_contents().facts,
        name=draw(NAMES),
        kind=draw(st.sampled_from(("tokenizer", "generator", "custom"))),
        groups=tuple(groups),
        documents=tuple(bundle_file(path, data) for path, data in documents.items()),
    )
    return Contents(facts, sources)


@given(made=contents(), signed=st.booleans())
@settings(max_examples=60, deadline=None, database=None)
def test_contents_are_read_back_as_they_were_written(
    made: Contents, signed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("case")
    if facts_problem(made.facts) is not None:  # two names that are one on some system
        with pytest.raises(WorkspaceError):
            write_bundle(folder / "x.tar", made)
        assert not list(folder.iterdir())
        return
    write_bundle(folder / "x.tar", made, key_of("ci") if signed else None)
    facts, found = read_back(folder / "x.tar", folder / "out")
    assert facts == made.facts
    assert found == made.sources
    if signed:
        with Bundle(folder / "x.tar") as bundle:
            assert bundle.require_signature([("ci", key_of("ci").public_key())]) == ("ci",)


@given(made=contents())
@settings(max_examples=40, deadline=None, database=None)
def test_same_contents_give_the_same_bytes_which_tarfile_reads(
    made: Contents, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if facts_problem(made.facts) is not None:
        return
    folder = tmp_path_factory.mktemp("case")
    shuffled = list(made.sources.items())
    random.Random(0).shuffle(shuffled)
    again = Contents(made.facts, dict(shuffled))
    digests = {write_bundle(folder / "x.tar", made), write_bundle(folder / "y.tar", again)}
    data = (folder / "x.tar").read_bytes()
    assert data == (folder / "y.tar").read_bytes()
    assert len(digests) == 1
    members = read_members(io.BytesIO(data), "x")
    assert members_of(data) == {n: data[m.offset : m.offset + m.size] for n, m in members.items()}
    with tarfile.open(folder / "x.tar") as archive:
        headers = archive.getmembers()
    assert {(h.mtime, h.uid, h.gid, h.uname, h.gname, h.mode) for h in headers} == {
        (0, 0, 0, "", "", 0o644)
    }
    names = [h.name for h in headers]
    assert names[:2] == ["oci-layout", "index.json"] and names[2:] == sorted(names[2:])


def test_bytes_do_not_depend_on_place_time_or_umask(tmp_path: Path) -> None:
    sources = {}
    for k, (path, data) in enumerate(small_contents().sources.items()):
        sources[path] = tmp_path / f"source{k}"
        sources[path].write_bytes(data)
        os.utime(sources[path], (k, k))
    write_bundle(tmp_path / "x.tar", small_contents())
    before = os.umask(0o077)
    try:
        write_bundle(tmp_path / "deep" / "y.tar", Contents(small_contents().facts, sources))
    finally:
        os.umask(before)
    assert (tmp_path / "x.tar").read_bytes() == (tmp_path / "deep" / "y.tar").read_bytes()


def test_equal_files_are_one_blob(tmp_path: Path) -> None:
    documents = {f"{k}.md": b"the same bytes" for k in range(5)}
    write_bundle(tmp_path / "x.tar", small_contents(documents=documents))
    data = (tmp_path / "x.tar").read_bytes()
    assert data.count(b"the same bytes") == 1
    _, found = read_back(tmp_path / "x.tar", tmp_path / "out")
    assert documents.items() <= found.items()


def test_signing_changes_nothing_of_the_model(tmp_path: Path) -> None:
    digest = write_bundle(tmp_path / "x.tar", small_contents())
    assert write_bundle(tmp_path / "y.tar", small_contents(), key_of("ci")) == digest
    before = members_of((tmp_path / "x.tar").read_bytes())
    with Bundle(tmp_path / "x.tar") as bundle:
        sign_bundle(bundle, tmp_path / "z.tar", key_of("ci"))
    after = members_of((tmp_path / "z.tar").read_bytes())
    del before["index.json"]
    assert before.items() <= after.items()
    with Bundle(tmp_path / "z.tar") as bundle:
        assert bundle.digest == digest


def test_order_of_signing_is_free(tmp_path: Path) -> None:
    """ECDSA draws a number for each signature, so that the bytes differ and the keys do not."""
    for order in itertools.permutations(("a", "b", "c")):
        write_bundle(tmp_path / "x.tar", small_contents())
        for owner in order:
            with Bundle(tmp_path / "x.tar") as bundle:
                sign_bundle(bundle, tmp_path / "x.tar", key_of(owner))
        with Bundle(tmp_path / "x.tar") as bundle:
            bundle.verify()
            for owner in order:
                bundle.require_signature([(owner, key_of(owner).public_key())])


def test_source_that_changes_while_it_is_packed_leaves_no_bundle(tmp_path: Path) -> None:
    for data in (b"an onnx graph, changed", b"AN onnx graph", b""):
        source = tmp_path / "model.onnx"
        source.write_bytes(data)
        made = small_contents()
        sources = {**made.sources, "engines/int8/onnxruntime/model.onnx": source}
        with pytest.raises(WorkspaceError, match=r"model\.onnx: changed while it was read"):
            write_bundle(tmp_path / "x.tar", Contents(made.facts, sources))
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_failed_write_keeps_the_bundle_that_was_there(tmp_path: Path) -> None:
    write_bundle(tmp_path / "x.tar", small_contents())
    before = (tmp_path / "x.tar").read_bytes()
    sources = {**small_contents().sources, "README.md": tmp_path / "missing"}
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "x.tar", Contents(small_contents().facts, sources))
    assert (tmp_path / "x.tar").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize(
    "name",
    [
        "../x.md",
        "/x.md",
        "readme.MD",
        "con.md",
        "a:b.md",
        ".hidden",
        "x\ny",
        "bundle.json",
        "\udc80",
    ],
)
def test_name_that_no_reader_takes_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    documents = {"README.md": b"x", name: b"x"}
    with pytest.raises(WorkspaceError, match="the path") as caught:
        write_bundle(tmp_path / "x.tar", small_contents(documents=documents))
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_two_groups_of_one_name_are_refused(tmp_path: Path) -> None:
    files = {"engines/int8/other/model.onnx": b"x"}
    more = [(target_group("cpu", "kit", files), files)]
    with pytest.raises(WorkspaceError, match="'cpu' is named twice"):
        write_bundle(tmp_path / "x.tar", small_contents(more=more))


def test_what_is_forged_is_not_signed(tmp_path: Path) -> None:
    """Every digest fits, and the engine is of another version than its group says."""
    write_bundle(tmp_path / "x.tar", small_contents(engine=plan("1.8.0.0")))
    with Bundle(tmp_path / "x.tar") as bundle, pytest.raises(IntegrityError, match=r"1\.8\.0\.0"):
        sign_bundle(bundle, tmp_path / "y.tar", key_of("ci"))
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]


def test_name_that_is_signed_is_that_of_the_facts(tmp_path: Path) -> None:
    """The index has a tag there, which whoever copied the bundle last has set."""
    write_bundle(tmp_path / "x.tar", small_contents())
    tag = {"org.opencontainers.image.ref.name": "v2\nevil"}
    data = forged(
        (tmp_path / "x.tar").read_bytes(), index=lambda i: i["manifests"][0].update(annotations=tag)
    )
    (tmp_path / "x.tar").write_bytes(data)
    with Bundle(tmp_path / "x.tar") as bundle:
        assert bundle.name == "int8"
        sign_bundle(bundle, tmp_path / "y.tar", key_of("ci"))
    members = members_of((tmp_path / "y.tar").read_bytes())
    (envelope,) = (json.loads(data)["dsseEnvelope"] for data in members.values() if SIGNED in data)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert [subject["name"] for subject in statement["subject"]] == ["int8"]


def test_source_of_more_than_8_gib_has_a_size_that_is_read_back() -> None:
    """The tar's octal digits end there; GNU's base 256 goes on."""
    from arvg_trt.engines.bundle.write import member
    from arvg_trt.runtime.bundle.archive import read_header

    size = 9 * 2**30
    head = member("blobs/sha256/" + "0" * 64, size).tobuf(tarfile.GNU_FORMAT)
    assert read_header(head, "x", first=False).size == size


def test_files_beside_the_folders_of_engines_are_none_of_them(tmp_path: Path) -> None:
    """A pattern that ends with "/" matches them before Python 3.11."""
    place = tmp_path / "engines" / "int8"
    (place / "onnxruntime").mkdir(parents=True)
    (place / ".onnxruntime.x.tmp").mkdir()
    (place / "notes.txt").write_text("mine")
    assert folders_of_engines(tmp_path, "int8") == [place / "onnxruntime"]
    assert folders_of_engines(tmp_path, "none") == []
