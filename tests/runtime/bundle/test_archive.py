"""The tar file of a bundle: cut, flipped, with members that no bundle has, or far too many."""

from __future__ import annotations

import gzip
import io
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from arvg_trt.benchmarks.fuzz.bundles import (
    BLOBS,
    bundle_bytes,
    header,
    members_of,
    packed,
    patched,
    tar_of,
)
from arvg_trt.errors import IntegrityError
from arvg_trt.runtime.bundle.archive import MOST_END, MOST_MEMBERS, read_members
from arvg_trt.runtime.bundle.blobs import BlobStore
from arvg_trt.runtime.bundle.reader import Bundle

NAMES = ("oci-layout", "index.json", *(BLOBS + digit * 64 for digit in "0123"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return bundle_bytes(tmp_path_factory.mktemp("bundle"))


def refusal(data: bytes) -> str:
    with pytest.raises(IntegrityError) as caught:
        read_members(io.BytesIO(data), "demo.tar")
    text = str(caught.value)
    assert text.startswith("demo.tar: ") and "\n" not in text and len(text) < 400
    return text


def with_member(head: bytes, content: bytes = b"") -> bytes:
    """A tar with one good member, and then this one."""
    return tar_of([(header("oci-layout", 2), b"{}"), (head, content)])


def test_members_are_those_that_tarfile_reads(data: bytes) -> None:
    found = read_members(io.BytesIO(data), "demo.tar")
    read = {name: data[m.offset : m.offset + m.size] for name, m in found.items()}
    assert read == members_of(data)
    assert len(read) > 8


def test_folders_of_other_writers_are_passed_over() -> None:
    folders = [(header(name, 0, tarfile.DIRTYPE), b"") for name in ("blobs", "blobs/sha256/")]
    found = read_members(io.BytesIO(tar_of([*folders, (header(NAMES[2], 3), b"abc")])), "x")
    assert list(found) == [NAMES[2]]


def test_tar_cut_anywhere_is_refused(data: bytes) -> None:
    whole = read_members(io.BytesIO(data), "demo.tar")
    end = max(-(-(m.offset + m.size) // 512) * 512 for m in whole.values())
    for length in [*range(0, end + 1024, 97), *range(0, end + 512, 512), end + 511, end + 1023]:
        refusal(data[:length])
    cut = read_members(io.BytesIO(data[: end + 1024]), "demo.tar")  # the fill of the last record
    assert cut == whole


def test_flip_of_any_byte_of_a_header_or_fill_is_refused_or_changes_nothing(data: bytes) -> None:
    whole = read_members(io.BytesIO(data), "demo.tar")
    inside = {at for m in whole.values() for at in range(m.offset, m.offset + m.size)}
    refused = 0
    places = [at for at in range(len(data)) if at not in inside]
    for at in places[::3]:
        flipped = bytearray(data)
        flipped[at] ^= 0x11
        try:
            found = read_members(io.BytesIO(flipped), "demo.tar")
        except IntegrityError:
            refused += 1
        else:
            # The last byte of the check sum ends it, whatever it is.
            assert found == whole
            assert at % 512 in range(148, 156)
    assert refused > 0.95 * len(places[::3])


def test_fill_between_members_must_be_zeros(data: bytes) -> None:
    member = read_members(io.BytesIO(data), "x")["oci-layout"]
    flipped = bytearray(data)
    flipped[member.offset + member.size] = 1
    assert "has bytes between its files" in refusal(bytes(flipped))


def test_bytes_behind_the_end_are_refused(data: bytes) -> None:
    assert "has 512 bytes behind its end" in refusal(data + b"x" * 512)
    assert f"has {len(data):,} bytes behind its end" in refusal(data + data)
    assert "has 6 bytes behind its end" in refusal(data + b"hello\n")
    assert "has 1 byte behind its end" in refusal(data + b"x")
    assert "is cut off in its last block, or has 1 byte behind its end" in refusal(data + b"\0")


def test_endless_zeros_behind_the_end_are_refused_unread(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "sparse.tar"
    path.write_bytes(data)
    with path.open("r+b") as stream:
        stream.truncate(2**40)
    start = time.monotonic()
    with pytest.raises(IntegrityError, match="bytes behind its end"):
        BlobStore(path)
    assert time.monotonic() - start < 1
    assert path.stat().st_size > MOST_END


@pytest.mark.parametrize("end", [0, 1])
def test_tar_without_its_two_last_blocks_is_cut_off(end: int) -> None:
    assert "is cut off" in refusal(tar_of([(header("oci-layout", 2), b"{}")], end=end))


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.DIRTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        b"V",
        b"M",
    ],
)
@pytest.mark.parametrize("name", ["oci-layout", "index.json", NAMES[2]])
def test_member_of_another_kind_is_refused(kind: bytes, name: str) -> None:
    head = header(name, 0, kind, linkname="/etc/passwd")
    text = refusal(tar_of([(head, b"")]))
    assert "no plain file" in text or "damaged" in text


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_refused(style: int) -> None:
    info = tarfile.TarInfo("blobs/sha256/" + "a" * 300)
    assert "no plain file" in refusal(info.tobuf(style) + bytes(1024))


@pytest.mark.parametrize(
    "name",
    [
        "../index.json",
        "/index.json",
        "./index.json",
        "blobs/sha256/../../index.json",
        "blobs/sha256/../../../etc/passwd",
        "INDEX.JSON",
        "Index.json",
        "index.json ",
        "index.json/",
        "C:\\index.json",
        "blobs\\sha256\\" + "0" * 64,
        "BLOBS/sha256/" + "0" * 64,
        BLOBS + "A" * 64,
        BLOBS + "0" * 63,
        BLOBS + "0" * 64 + "\n",
        "blobs/sha512/" + "0" * 64,
        "con",
        "",
        "x\x1b[2J",
        "bundle.tar",
    ],
)
def test_member_of_another_name_is_refused(name: str) -> None:
    refusal(with_member(header(name, 0)))


def test_prefix_of_a_name_counts(data: bytes) -> None:
    head = patched(header("index.json", 0), 257, b"ustar\x0000")
    refusal(with_member(patched(head, 345, b"../..")))


def test_name_that_is_no_utf8_is_refused() -> None:
    assert "damaged header" in refusal(with_member(patched(header("x", 0), 0, b"\xff\xfe")))


def test_member_named_twice_is_refused() -> None:
    assert "holds oci-layout twice" in refusal(with_member(header("oci-layout", 2), b"[]"))


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        (b"\x80" + bytes(3) + (2**63).to_bytes(8, "big"), "is cut off in index.json"),
        (b"\x80" + (2**63 - 1).to_bytes(11, "big"), "is cut off in index.json"),
        (b"\x80" + b"\xff" * 11, "is cut off in index.json"),
        (b"77777777777\0", "is cut off in index.json"),
        (b"\xff" * 12, "damaged header"),
        (b"\xff" * 11 + b"\xfe", "damaged header"),
        (b"-0000000001\0", "damaged header"),
        (b"+0000000000\0", "damaged header"),
        (b"0_0_0_0_0_0\0", "damaged header"),
        (b"0x000000000\0", "damaged header"),
        (b"99999999999\0", "damaged header"),
        (b"            ", "damaged header"),
        (bytes(12), "damaged header"),
    ],
)
def test_size_that_cannot_be_is_refused(field: bytes, problem: str) -> None:
    assert problem in refusal(with_member(patched(header("index.json", 0), 124, field)))


def test_size_in_base_256_is_read_as_tarfile_reads_it() -> None:
    head = patched(header("index.json", 5), 124, b"\x80" + (5).to_bytes(11, "big"))
    found = read_members(io.BytesIO(with_member(head, b"12345")), "x")
    assert found["index.json"].size == 5


def test_wrong_check_sum_is_refused() -> None:
    head = b"j" + header("index.json", 0)[1:]
    assert "damaged header" in refusal(with_member(head))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_a_million_members_are_refused_early_and_in_little_memory(
    kind: bytes, tmp_path: Path
) -> None:
    """The file is 512 MB of headers, all in the page cache at most."""
    path = tmp_path / "many.tar"
    many = 10**6
    with path.open("wb") as stream:
        if kind == tarfile.DIRTYPE:
            block = header("blobs", 0, kind) * 1000
            for _ in range(1 + many // 10_000):  # those that follow are never read
                stream.write(block)
        else:
            first = header(BLOBS + "0" * 64, 0)
            for k in range(MOST_MEMBERS + 5):
                stream.write(patched(first, len(BLOBS), b"%064x" % k))
        stream.truncate(512 * many)
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(IntegrityError, match="holds"):
        BlobStore(path)
    seconds = time.monotonic() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    assert seconds < 10  # tracemalloc makes it five times slower


@pytest.mark.parametrize("content", [b"", b"x", b"no tar" * 500, b"\xff" * 20_000])
def test_what_is_no_tar_is_refused(content: bytes) -> None:
    assert "is no tar file" in refusal(content)


def test_zeros_are_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "zeros.tar").write_bytes(bytes(10_240))
    with pytest.raises(IntegrityError, match="lacks oci-layout"):
        Bundle(tmp_path / "zeros.tar")


def test_compressed_bundle_is_refused_with_the_reason(data: bytes) -> None:
    assert "is compressed with gzip" in refusal(gzip.compress(data))


def test_bundle_in_a_tar_is_refused(data: bytes) -> None:
    assert "holds 'demo.tar', which no bundle has" in refusal(packed({"demo.tar": data}))
