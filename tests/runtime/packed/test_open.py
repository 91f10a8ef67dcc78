"""A packed folder that is opened: expanded once, and refused where it is damaged."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arvg_trt.engines.packed.write import known_weights, pack_folder
from arvg_trt.errors import IntegrityError, WorkspaceError
from arvg_trt.runtime.bundle.cache import cache_entries, clear_cache
from arvg_trt.runtime.packed.layout import INDEX_FILE, WEIGHTS_FILE, read_index
from arvg_trt.runtime.packed.open import expanded
from arvg_trt.workspace.files import CACHE_VARIABLE
from arvg_trt.workspace.manifest import Manifest, write_manifest
from arvg_trt.workspace.verify import verify

from ...engines.packed.folders import contents, quantized_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def packed_folder(root: Path, seed: int = 0) -> tuple[Path, Path]:
    """Return a folder of graphs with a manifest, and its packed form."""
    source, folder = quantized_folder(root / f"source{seed}", seed), root / f"packed{seed}"
    folder.mkdir()
    (source / "weights.safetensors").rename(root / f"{seed}.safetensors")
    (root / "known").mkdir()
    (root / f"{seed}.safetensors").rename(root / "known" / "weights.safetensors")
    write_manifest(source, Manifest(stage="build", inputs={}, options={}, versions={}), {})
    index, _ = pack_folder(source, folder, known_weights(root / "known"))
    shutil.rmtree(root / "known")
    for path in source.iterdir():
        if path.name not in {file.path for file in index.files}:
            shutil.copyfile(path, folder / path.name)
    return source, folder


def test_a_packed_folder_is_expanded_once_to_what_it_was_packed_from(tmp_path: Path) -> None:
    source, folder = packed_folder(tmp_path)
    found = expanded(folder)
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {
        p.name: p.read_bytes() for p in source.iterdir()
    }
    verify(found)
    before = found.stat().st_ino
    assert expanded(folder) == found and found.stat().st_ino == before
    assert expanded(source) == source
    (entry,) = cache_entries()
    assert entry.folder == found
    assert clear_cache() == [found]


def test_a_copy_that_was_changed_is_made_anew(tmp_path: Path) -> None:
    source, folder = packed_folder(tmp_path)
    found = expanded(folder)
    data = (found / "model.onnx.data").read_bytes()
    (found / "model.onnx.data").write_bytes(b"?" + data[1:])
    index = read_index(folder)
    assert contents(expanded(folder), index) == contents(source, index)


def weights_of(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], None]:
    def write(folder: Path, other: Path) -> None:
        (folder / WEIGHTS_FILE).write_bytes(change((folder / WEIGHTS_FILE).read_bytes()))

    return write


def index_of(change: Callable[[Any], object]) -> Callable[[Path, Path], None]:
    def write(folder: Path, other: Path) -> None:
        index = json.loads((folder / INDEX_FILE).read_bytes())
        change(index)
        (folder / INDEX_FILE).write_text(json.dumps(index))

    return write


def from_other(name: str) -> Callable[[Path, Path], None]:
    return lambda folder, other: shutil.copyfile(other / name, folder / name)


def flipped(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


OF_ANOTHER = "was changed, or is of another model: it is not what packed.json names"
DAMAGED: dict[str, tuple[Callable[[Path, Path], object], str, str]] = {
    "truncated": (weights_of(lambda d: d[:-1]), WEIGHTS_FILE, "is cut off: it has"),
    "empty": (weights_of(lambda d: b""), WEIGHTS_FILE, "is cut off: it has 0 bytes"),
    "changed": (weights_of(flipped), WEIGHTS_FILE, OF_ANOTHER),
    "longer": (weights_of(lambda d: d + b"\0"), WEIGHTS_FILE, OF_ANOTHER),
    "missing": (lambda f, o: (f / WEIGHTS_FILE).unlink(), WEIGHTS_FILE, "no such file"),
    "of another model": (from_other(WEIGHTS_FILE), WEIGHTS_FILE, OF_ANOTHER),
    "index of another model": (from_other(INDEX_FILE), WEIGHTS_FILE, OF_ANOTHER),
    "index truncated": (
        lambda f, o: (f / INDEX_FILE).write_bytes((f / INDEX_FILE).read_bytes()[:-9]),
        INDEX_FILE,
        "is no index of packed weights",
    ),
    "another digest": (
        index_of(lambda i: i["files"][0].update(sha256="0" * 64)),
        WEIGHTS_FILE,
        "expands to another first.onnx than packed.json names",
    ),
    "another size": (
        index_of(lambda i: i["files"][0].update(bytes=7)),
        INDEX_FILE,
        "the parts of first.onnx are not its 7 bytes",
    ),
    "another number": (
        index_of(lambda i: i.update(bytes=7)),
        INDEX_FILE,
        "bytes of packed weights, and there are 7",
    ),
    "a newer schema": (
        index_of(lambda i: i.update(schema="arvg-trt/packed/v2")),
        INDEX_FILE,
        "is no index of packed weights",
    ),
    "a path that leaves": (
        index_of(lambda i: i["files"][0].update(path="../../x.onnx")),
        INDEX_FILE,
        "the file '../../x.onnx' has folders",
    ),
    "a file twice": (
        index_of(lambda i: i["files"][1].update(path="FIRST.onnx")),
        INDEX_FILE,
        "the file 'FIRST.onnx' is there twice",
    ),
    "its own name": (
        index_of(lambda i: i["files"][1].update(path="manifest.json")),
        INDEX_FILE,
        "is there twice, or is none to be packed",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_or_of_another_model_is_refused_in_one_line(
    case: str, tmp_path: Path
) -> None:
    damage, where, what = DAMAGED[case]
    _, folder = packed_folder(tmp_path)
    _, other = packed_folder(tmp_path, seed=1)
    damage(folder, other)
    with pytest.raises(IntegrityError) as caught:
        expanded(folder)
    assert caught.value.where == str(folder / where)
    assert what in caught.value.what
    assert "get the folder or the bundle again" in str(caught.value)
    assert cache_entries() == ()
    assert not list((tmp_path / "cache").rglob("*.onnx*"))


def test_graphs_of_another_model_beside_the_index_are_refused(tmp_path: Path) -> None:
    source, folder = packed_folder(tmp_path)
    shutil.copyfile(source / "first.onnx", folder / "first.onnx")
    with pytest.raises(WorkspaceError, match="lies beside packed"):
        expanded(folder)


def test_the_manifest_of_another_model_is_refused_where_it_is_opened(tmp_path: Path) -> None:
    _, folder = packed_folder(tmp_path)
    _, other = packed_folder(tmp_path, seed=1)
    shutil.copyfile(other / "manifest.json", folder / "manifest.json")
    with pytest.raises(WorkspaceError, match="was changed after"):
        verify(expanded(folder))


def test_commands_that_expand_nothing_say_what_to_do(tmp_path: Path) -> None:
    _, folder = packed_folder(tmp_path)
    with pytest.raises(WorkspaceError, match=r"has packed weights.*arvg-trt unpack FOLDER"):
        verify(folder)


PARTS: dict[str, tuple[list[object], bytes, str]] = {
    "an unknown rule": ([0, 8, "lz4", 8], bytes(8), "is no index"),
    "negative bytes": ([0, -8, "raw", -8], b"", "is no index"),
    "one number too many": ([0, 8, "raw", 8, 1, 0, 1, 0, False, 0], bytes(8), "is no index"),
    "other stored bytes": ([0, 8, "raw", 7], bytes(7), "takes 8 bytes, and says 7"),
    "elements of 3 bytes": ([0, 9, "raw", 9, 3], bytes(9), "in elements of 3"),
    "indices of 9 bits": ([0, 8, "table", 10, 1, 9, 1, 1], bytes(10), "indices of 9 bits"),
    "no table": ([0, 8, "table", 1, 1, 1, 0, 1], bytes(1), "into 0 tables"),
    "tables that do not fit": ([0, 8, "table", 4, 1, 1, 3, 1], bytes(4), "into 3 tables"),
    "more entries than bits": ([0, 8, "table", 4, 1, 1, 1, 3], bytes(4), "3 entries for 1 bits"),
    "levels of 1 byte": ([0, 8, "log", 10, 1, 2, 1], bytes(10), "levels of 1 bytes"),
    "too many levels": ([0, 4 * 2**20, "log", 9 * 2**20, 4, 8, 2**20], b"", "too many to be true"),
    "an index beyond": ([0, 8, "table", 6, 1, 2, 1, 3], b"abc\xff\xff", "takes 5 bytes"),
    "an entry beyond": ([0, 8, "table", 5, 1, 2, 1, 3], b"abc\xff\xff", "beyond its table"),
    "no stream": ([0, 8, "deflate", 3], b"abc", "is no zlib stream"),
    "half a stream": ([0, 8, "deflate", 9], zlib.compress(bytes(8))[:9], "too little"),
    "a stream of less": ([0, 8, "deflate", 11], zlib.compress(b"ab") + b"x", "too little"),
    "a stream of more": (
        [0, 8, "deflate", len(zlib.compress(bytes(10**6)))],
        zlib.compress(bytes(10**6)),
        "too much",
    ),
}


@pytest.mark.parametrize("case", PARTS)
def test_a_part_that_contradicts_itself_is_refused(case: str, tmp_path: Path) -> None:
    part, data, what = PARTS[case]
    file = {"path": "a.onnx", "bytes": part[1], "sha256": "0" * 64, "parts": [part]}
    index = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "files": [file]}
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / WEIGHTS_FILE).write_bytes(data)
    (tmp_path / "x" / INDEX_FILE).write_bytes(
        msgspec.json.encode({**index, "schema": "arvg-trt/packed/v1"})
    )
    with pytest.raises(IntegrityError, match=what):
        expanded(tmp_path / "x")
    assert not list((tmp_path / "cache").rglob("*.onnx"))
