"""Bundles that are changed, forged or lie: refused in one line, or what they were."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arvg_trt.benchmarks.fuzz.bundle_readers import NAME, bundle_readers, read_bundle
from arvg_trt.benchmarks.fuzz.bundles import (
    BLOBS,
    bundle_bytes,
    forged,
    members_of,
    packed,
    plan,
    small_contents,
    target_group,
)
from arvg_trt.benchmarks.fuzz.files import FileKind
from arvg_trt.benchmarks.fuzz.fuzz import attempt
from arvg_trt.errors import IntegrityError, WorkspaceError
from arvg_trt.runtime.bundle.archive import read_members
from arvg_trt.runtime.bundle.blobs import MOST_JSON
from arvg_trt.runtime.bundle.layout import MOST_GROUPS
from arvg_trt.runtime.bundle.reader import Bundle

from .keys import key_of

KEYS = (("ci.pub", key_of("ci").public_key()),)
SEEDS = 200


@pytest.fixture(scope="module")
def unsigned(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bundle_bytes(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bundle_bytes(tmp_path_factory.mktemp("bundle"), key=key_of("ci"))


def check(folder: Path, data: bytes, *, require: bool = False) -> dict[str, str]:
    """Read a bundle as `verify` and `unpack` do; return the digests of its files."""
    (folder / NAME).write_bytes(data)
    with Bundle(folder / NAME) as bundle:
        if require:
            bundle.require_signature(KEYS)
        bundle.verify()
        return bundle.digests()


def refusal(folder: Path, data: bytes, *, require: bool = False) -> str:
    with pytest.raises(IntegrityError) as caught:
        check(folder, data, require=require)
    text = str(caught.value)
    assert text.startswith(f"{folder / NAME}: ")
    assert text.isprintable() and len(text) < 600 + len(str(folder))
    return text


def test_bundle_is_read_as_it_was_written(tmp_path: Path, signed: bytes) -> None:
    found = check(tmp_path, signed, require=True)
    assert set(found) == {"bundle.json", *small_contents().sources}


def test_forger_who_changes_nothing_writes_the_same_bundle(
    tmp_path: Path, unsigned: bytes, signed: bytes
) -> None:
    """Guards the tests below: what they are refused for is their change alone."""
    assert check(tmp_path, forged(unsigned)).keys() == check(tmp_path, unsigned).keys()
    check(tmp_path, forged(signed))


def test_flip_in_any_blob_is_refused(tmp_path: Path, signed: bytes) -> None:
    (tmp_path / NAME).write_bytes(signed)
    with Bundle(tmp_path / NAME) as bundle:
        blobs = {n: m for n, m in bundle.blobs.members.items() if n.startswith(BLOBS)}
    for member in blobs.values():
        for at in {0, member.size // 2, member.size - 1}:
            flipped = bytearray(signed)
            flipped[member.offset + at] ^= 0x01
            assert "digest differs" in refusal(tmp_path, bytes(flipped))


def test_flip_in_the_index_or_mark_is_refused_or_changes_nothing(
    tmp_path: Path, signed: bytes
) -> None:
    whole = check(tmp_path, signed)
    with (tmp_path / NAME).open("rb") as stream:
        members = read_members(stream, "x")
    for name in ("oci-layout", "index.json"):
        for at in range(members[name].size):
            flipped = bytearray(signed)
            flipped[members[name].offset + at] ^= 0x04
            try:
                found = check(tmp_path, bytes(flipped), require=True)
            except IntegrityError as error:
                assert "\n" not in str(error)
            else:
                assert found == whole


def test_blobs_swapped_are_refused(tmp_path: Path, unsigned: bytes) -> None:
    members = members_of(unsigned)
    names = sorted(name for name in members if name.startswith(BLOBS))
    for one, other in itertools.pairwise(names):
        swapped = members | {one: members[other], other: members[one]}
        refusal(tmp_path, packed(swapped))


def test_lost_member_is_refused(tmp_path: Path, signed: bytes) -> None:
    members = members_of(signed)
    for lost in members:
        left = {name: data for name, data in members.items() if name != lost}
        assert f"lacks {lost}" in refusal(tmp_path, packed(left))


def test_member_that_nothing_names_is_refused(tmp_path: Path, unsigned: bytes) -> None:
    extra = {BLOBS + "0" * 64: b"unnamed"}
    assert "which nothing in it names" in refusal(tmp_path, packed(members_of(unsigned) | extra))


def test_order_of_members_is_free(tmp_path: Path, signed: bytes) -> None:
    members = dict(reversed(members_of(signed).items()))
    assert check(tmp_path, packed(members), require=True) == check(tmp_path, signed)


def test_bundle_as_a_file_of_a_bundle_stays_a_file(tmp_path: Path, signed: bytes) -> None:
    documents = {"other.tar": signed, "other.tar.gz": gzip.compress(signed)}
    nested = bundle_bytes(tmp_path, small_contents(documents=documents))
    found = check(tmp_path, nested)
    assert set(documents) <= set(found)


def set_keys(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(changed)


def set_group(**changed: Any) -> Callable[[dict[str, Any]], None]:
    return lambda facts: facts["groups"][0].update(changed)


LIES: dict[str, dict[str, Callable[[Any], Any]]] = {
    "another model": {"config": lambda c: c["descriptor"].update(family="other")},
    "another name": {"config": lambda c: c["descriptor"].update(name="other")},
    "another precision": {"config": lambda c: c["config"].update(precision="float32")},
    "another format": {"config": lambda c: c["config"].update(format="onnx")},
    "files unlike the layers": {"config": lambda c: c["modelfs"]["diffIds"].reverse()},
    "more in the description": {"config": set_keys(more=1)},
    "description that is a list": {"config": lambda c: b"[]"},
    "another group": {"manifest": lambda m: m["annotations"].update({"io.arvg-trt.kind": "kit"})},
    "other targets": {"manifest": lambda m: m["annotations"].update({"io.arvg-trt.targets": "*"})},
    "no annotations": {"manifest": lambda m: m["annotations"].clear()},
    "targets in the index": {
        "model": lambda m: m["manifests"][0]["annotations"].update({"io.arvg-trt.targets": "sm75"})
    },
    "no model": {"manifest": set_keys(artifactType="application/vnd.oci.empty.v1+json")},
    "config of no model": {"manifest": lambda m: m["config"].update(mediaType="text/plain")},
    "layer of another kind": {"manifest": lambda m: m["layers"][1].update(mediaType="text/html")},
    "layer of another size": {"manifest": lambda m: m["layers"][1].update(size=1)},
    "layer of 2^63 bytes": {"manifest": lambda m: m["layers"][1].update(size=2**63)},
    "layer of less than nothing": {"manifest": lambda m: m["layers"][1].update(size=-1)},
    "layer under another path": {
        "manifest": lambda m: m["layers"][1]["annotations"].update({"org.cncf.model.filepath": "x"})
    },
    "layer lost": {"manifest": lambda m: m["layers"].pop()},
    "layer twice": {"manifest": lambda m: m["layers"].append(m["layers"][-1])},
    "layers in another order": {"manifest": lambda m: m["layers"].reverse()},
    "digests swapped": {
        "manifest": lambda m: (
            m["layers"][1].update(digest=m["layers"][2]["digest"]),
            m["layers"][2].update(digest=m["layers"][1]["digest"]),
        )
    },
    "digest of another hash": {
        "manifest": lambda m: m["layers"][1].update(digest="sha512:" + "0" * 128)
    },
    "digest with a line break": {
        "manifest": lambda m: m["layers"][1].update(digest=m["layers"][1]["digest"] + "\n")
    },
    "digest with a path": {
        "manifest": lambda m: m["layers"][1].update(digest="sha256:../../index.json")
    },
    "subject": {"manifest": lambda m: m.update(subject=m["config"])},
    "another title": {"model": lambda m: m["annotations"].clear()},
    "manifest lost": {"model": lambda m: m["manifests"].pop()},
    "manifest twice": {"model": lambda m: m["manifests"].append(m["manifests"][0])},
    "manifests in another order": {"model": lambda m: m["manifests"].reverse()},
    "manifest of another type": {"model": lambda m: m["manifests"][0].update(mediaType="x")},
    "no manifests": {"model": lambda m: m["manifests"].clear()},
    "no index": {"model": lambda m: b"{}"},
    "schema of Docker's first": {"model": set_keys(schemaVersion=1)},
    "two models": {
        "index": lambda i: i["manifests"].append(
            i["manifests"][0] | {"digest": i["manifests"][0]["digest"][:-1] + "0"}
        )
    },
    "no models": {"index": lambda i: i["manifests"].clear()},
    "model of another kind": {"index": lambda i: i["manifests"][0].update(mediaType="x")},
    "model of 0 bytes": {"index": lambda i: i["manifests"][0].update(size=0)},
    "another layout": {
        "members": lambda m: m.update({"oci-layout": b'{"imageLayoutVersion":"2"}'})
    },
    "layout that is no JSON": {"members": lambda m: m.update({"oci-layout": b"1.0.0"})},
    "two engines of one name": {"facts": set_group(name="cpu")},
    "group without a folder": {"facts": set_group(folder="")},
    "folder above": {"facts": set_group(folder="..")},
    "folder elsewhere": {"facts": set_group(folder="/etc")},
    "folder without files": {"facts": set_group(folder="engines/other")},
    "group name above": {"facts": set_group(name="..")},
    "group name with a path": {"facts": set_group(name="a/../../../../x")},
    "group name of a device": {"facts": set_group(name="nul")},
    "group without a name": {"facts": set_group(name="")},
    "group name of 101 letters": {"facts": set_group(name="n" * 101)},
    "group name in capitals": {"facts": set_group(name="CPU")},
    "another kind of group": {"facts": set_group(kind="onnxruntime", version="1.23.0")},
    "unknown kind of group": {"facts": set_group(kind="coreml")},
    "other files": {"facts": lambda f: f["groups"][0]["files"][0].update(sha256="0" * 64)},
    "other sizes": {"facts": lambda f: f["groups"][0]["files"][0].update(bytes=7)},
    "less than nothing": {"facts": lambda f: f["groups"][0]["files"][0].update(bytes=-1)},
    "size of 2^64": {"facts": lambda f: f["groups"][0]["files"][0].update(bytes=2**64)},
    "size that is none": {"facts": lambda f: f["groups"][0]["files"][0].update(bytes=1.5)},
    "digest in capitals": {"facts": lambda f: f["groups"][0]["files"][0].update(sha256="A" * 64)},
    "files of another group": {
        "facts": lambda f: f["groups"][0].update(files=f["groups"][1]["files"])
    },
    "engine by another version": {"facts": set_group(version="1.7.0.26")},
    "engine for other GPUs": {"facts": set_group(targets=["sm86", "sm120"])},
    "name that steers a terminal": {"facts": set_keys(name="int8\x1b[2J")},
    "name with a second line": {"facts": set_keys(name="int8\nsigned by ci.pub")},
    "name from right to left": {"facts": set_keys(name="int8\u202e")},
    "name of 201 letters": {"facts": set_keys(name="n" * 201)},
    "GPU with a second line": {"facts": set_group(gpu="T4\nx")},
    "target with a second line": {"facts": set_group(targets=["sm86\n"])},
    "quantization with a path": {"facts": set_keys(quantization="../../x")},
    "quantization elsewhere": {"facts": set_keys(quantization="/x")},
    "quantization above": {"facts": set_keys(quantization="..")},
    "no quantization": {"facts": set_keys(quantization="")},
    "older schema": {"facts": set_keys(version=0)},
    "schema before all": {"facts": set_keys(version=-1)},
    "version as text": {"facts": set_keys(version="1")},
    "version of 5,000 digits": {
        "facts": lambda f: (
            json.dumps(f).replace('"version": 1', '"version": ' + "9" * 5000, 1).encode()
        )
    },
    "another schema": {"facts": set_keys(schema="arvg-trt/report")},
    "unknown key": {"facts": set_keys(more=1)},
    "key that steers a terminal": {"facts": lambda f: f.update({"\x1b[2J\n": 1})},
    "nothing": {"facts": lambda f: b""},
    "null": {"facts": lambda f: b"null"},
    "key twice": {"facts": lambda f: json.dumps(f).replace("{", '{"version": 1, ', 1).encode()},
    "NaN": {"facts": lambda f: json.dumps(f).replace('"version": 1', '"version": NaN', 1).encode()},
    "NaN in a key that nobody reads": {"index": set_keys(more=float("nan"))},
    "key twice in the index": {
        "index": lambda i: json.dumps(i).replace("{", '{"manifests": [], ', 1).encode()
    },
    "key twice in a manifest": {
        "manifest": lambda m: json.dumps(m).replace("{", '{"layers": [], ', 1).encode()
    },
    "no text": {"facts": lambda f: b"\xff\xfe"},
    "bytes that are no text in a key that nobody reads": {
        "index": lambda i: json.dumps(i)[:-1].encode() + b', "x": "\xff"}'
    },
    "half a character": {"facts": lambda f: json.dumps(f).replace("mini", "\\ud800").encode()},
    "byte order mark": {"facts": lambda f: b"\xef\xbb\xbf" + json.dumps(f).encode()},
    "JSON in UTF-16": {"facts": lambda f: json.dumps(f).encode("utf-16")},
    "nested in itself": {"facts": lambda f: b'{"x":' * 100_000 + b"1" + b"}" * 100_000},
    "lists in lists": {"index": lambda i: b"[" * 200_000},
    "lists in lists of a key that nobody reads": {
        "index": lambda i: (
            json.dumps(i)[:-1].encode() + b', "x": ' + b"[" * 9999 + b"]" * 9999 + b"}"
        )
    },
    "9 MB of index": {"index": lambda i: json.dumps(i).encode() + b" " * MOST_JSON},
    "9 MB of manifest": {"manifest": lambda m: json.dumps(m).encode() + b" " * MOST_JSON},
    "9 MB of facts": {"facts": lambda f: json.dumps(f).encode() + b" " * MOST_JSON},
    "one manifest ten thousand times": {
        "model": lambda m: m.update(manifests=m["manifests"][:1] * 10_000)
    },
    "too many manifests": {
        "model": lambda m: m.update(
            manifests=[
                m["manifests"][0] | {"digest": f"sha256:{k:064x}"} for k in range(MOST_GROUPS + 1)
            ]
        )
    },
}


@pytest.mark.parametrize("lie", LIES)
def test_bundle_that_lies_is_refused(lie: str, tmp_path: Path, unsigned: bytes) -> None:
    refusal(tmp_path, forged(unsigned, **LIES[lie]))


REASONS = {
    "two engines of one name": "'cpu' is named twice",
    "group name in capitals": "'cpu' is named twice",
    "group name with a path": "has a name that no folder can have",
    "group name above": "has a name that no folder can have",
    "group name of 101 letters": "has a name that no folder can have",
    "folder above": "has no folder",
    "quantization with a path": "is of no quantization: name '../../x'",
    "folder elsewhere": "has no folder",
    "folder without files": "has no file in its folder",
    "files of another group": "is there twice",
    "other files": f"lacks {BLOBS}{'0' * 64}",
    "other sizes": "bytes, not 7",
    "engine by another version": "was built by version 1.7.0.25, not 1.7.0.26",
    "engine for other GPUs": "is for sm86 sm89, not for sm120",
    "another kind of group": "was built by version",
    "name with a second line": "has control characters",
    "key twice": "an object has a key twice",
    "nested in itself": "it is nested too deeply",
    "lists in lists of a key that nobody reads": "it is nested too deeply",
    "another precision": "the manifest of rtx lies about the group",
    "layers in another order": "the manifest of rtx lists other files than bundle.json",
    "one manifest ten thousand times": "names one of its manifests twice",
    "too many manifests": "too many to be true",
    "9 MB of manifest": "too many to be true",
    "9 MB of index": "too many to be true",
}


@pytest.mark.parametrize("lie", REASONS)
def test_reason_is_named(lie: str, tmp_path: Path, unsigned: bytes) -> None:
    assert REASONS[lie] in refusal(tmp_path, forged(unsigned, **LIES[lie]))


def test_every_lie_changes_something(unsigned: bytes) -> None:
    assert len({forged(unsigned, **changes) for changes in LIES.values()}) == len(LIES)


def test_newer_bundle_says_what_to_do(tmp_path: Path, unsigned: bytes) -> None:
    newer = forged(unsigned, facts=set_keys(version=3, more={"unknown": True}))
    text = refusal(tmp_path, newer)
    assert "is a bundle of version 3, newer than this tool's 2 (update arvg-trt)" in text


def test_older_bundle_is_named(tmp_path: Path, unsigned: bytes) -> None:
    assert "version 0" in refusal(tmp_path, forged(unsigned, facts=set_keys(version=0)))


ENGINES = {
    "of another version": (plan("1.8.0.1"), "was built by version 1.8.0.1, not 1.7.0.25"),
    "of other GPUs": (plan(targets="sm75"), "is for sm75, not for sm86 sm89"),
    "of fewer GPUs": (plan(targets="sm86"), "is for sm86, not for sm89"),
    "that is cut off": (plan(size=10**9), "is cut off: "),
    "with bytes behind it": (plan() + b"more", "has 57 bytes, and its header says 53"),
    "that is empty": (b"", "is empty"),
    "of another back end": (b"ftrt" + bytes(40), "is no engine of TensorRT for RTX"),
    "of four bytes": (b"vtrt", "is no engine of TensorRT for RTX"),
}


@pytest.mark.parametrize("case", ENGINES)
def test_engine_unlike_its_group_is_refused_though_every_digest_fits(
    case: str, tmp_path: Path
) -> None:
    engine, problem = ENGINES[case]
    data = bundle_bytes(tmp_path, small_contents(engine=engine), key_of("ci"))
    text = refusal(tmp_path, data, require=True)
    assert f"engines/int8/rtx/model.engine {problem}" in text


def test_document_of_the_bytes_of_a_signature_is_no_fault(tmp_path: Path) -> None:
    """`{}` is what signatures have in place of a description; contents that are equal are one."""
    more = {"engines/int8/gpu/trt.json": b"{}"}
    group = target_group("trt", "tensorrt", more, version="10.9.0", targets=("sm86",), gpu="A10")
    contents = small_contents(documents={"empty.json": b"{}"}, more=[(group, more)])
    found = check(tmp_path, bundle_bytes(tmp_path, contents, key_of("ci")), require=True)
    assert found["empty.json"] == found["engines/int8/gpu/trt.json"]


def test_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="is a folder, not a bundle"):
        Bundle(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(IntegrityError, match="is a pipe or a device, not a bundle"):
            Bundle(path)
    with pytest.raises(WorkspaceError, match=r"missing\.tar: no such file .name a file that"):
        Bundle(tmp_path / "missing.tar")


def test_file_that_changes_while_it_is_open_is_refused(tmp_path: Path, unsigned: bytes) -> None:
    path = tmp_path / NAME
    path.write_bytes(unsigned)
    with Bundle(path) as bundle:
        file = bundle.facts.groups[1].files[0]
        with path.open("r+b") as stream:
            stream.seek(bundle.blobs.members[BLOBS + file.sha256].offset)
            stream.write(b"AN")
        with pytest.raises(IntegrityError, match="was changed"):
            bundle.extract([file], tmp_path / "out")
        os.truncate(path, 1024)
        with pytest.raises(IntegrityError, match="is cut off"):
            bundle.verify()


@pytest.mark.parametrize("kind", ["bundle", "bundle unsigned"])
def test_mutations_are_refused_or_equal_and_nothing_is_written_elsewhere(
    kind: str, tmp_path: Path
) -> None:
    """`python -m arvg_trt.benchmarks.fuzz --kind bundle` runs 2,000."""
    data, read = bundle_readers(tmp_path)[kind]
    outcomes = [
        attempt(FileKind(NAME, data, read), seed, tmp_path / "case" / "ws") for seed in range(SEEDS)
    ]
    assert {*outcomes} == {"read", "refused"}


def test_reader_of_mutations_sees_what_is_unpacked(tmp_path: Path, unsigned: bytes) -> None:
    """Guards the test above: the same reader returns every file of a bundle that is whole."""
    (tmp_path / NAME).write_bytes(unsigned)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ARVG_TRT_CACHE", str(tmp_path / "cache"))
        found = read_bundle(tmp_path)
    assert set(found) == {"bundle.json", *small_contents().sources}
    assert len(list((tmp_path / "cache" / "bundles").glob("*.lock"))) == 2
