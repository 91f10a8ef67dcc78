"""Changed bytes of every file that the tool reads back: success or an `ArvgError` in one line.

`benchmarks/fuzz/fuzz.py` runs 2,000 mutations of each under limits of memory and time, and whole
commands.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arvg_trt.benchmarks.fuzz.files import FileKind, file_kinds
from arvg_trt.benchmarks.fuzz.fuzz import attempt
from arvg_trt.benchmarks.fuzz.mutations import mutate

NAMES = (
    *("plan", "sites", "statistics", "manifest", "recipe", "feeds", "feeds compressed", "tokens"),
    *("sample", "checkpoint", "onnx", "onnx inspected", "onnx opened", "tokenizer graph"),
    *("report", "config.json", "config.yaml"),
    *(f"generator {family}" for family in ("var", "rar", "par", "llamagen", "mar")),
    *(f"picture {suffix}" for suffix in ("png", "jpg", "gif", "tif", "bmp", "webp")),
    *("bundle", "bundle unsigned", "packed index", "packed weights", "picture npy"),
    *(f"manifest {s}" for s in ("export", "calibrate", "quantize", "search", "build", "validate")),
    *("labels", "tolerances", "machine", "failed build", "packed sites"),
    *("trust", "public key", "private key", "reference", "feature network", "pair network"),
    *("checkpoint pth", "checkpoint torchscript", "report with all", "workspace", "times"),
    *("origin", "OpenVINO record", "kit", "evaluation", "evaluation shard"),
)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileKind]:
    return file_kinds(tmp_path_factory.mktemp("valid"))


def test_every_kind_of_file_is_tried(kinds: dict[str, FileKind]) -> None:
    assert tuple(kinds) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_file_itself_is_read(name: str, kinds: dict[str, FileKind], tmp_path: Path) -> None:
    kind = kinds[name]
    folder = tmp_path / "ws"
    folder.mkdir()
    for file, data in (*kind.beside, (kind.name, kind.data)):
        (folder / file).write_bytes(data)
    kind.read(folder)


@pytest.mark.parametrize("name", NAMES)
def test_mutation_is_read_or_refused_in_one_line(
    name: str, kinds: dict[str, FileKind], tmp_path: Path
) -> None:
    @settings(max_examples=40, deadline=None, database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def run(seed: int) -> None:
        assert attempt(kinds[name], seed, tmp_path / "case" / "ws") in ("read", "refused")

    run()


def test_mutations_change_the_file_and_come_back_with_their_seed(
    kinds: dict[str, FileKind],
) -> None:
    for kind in kinds.values():
        found = {mutate(kind.data, kind.name, random.Random(seed)) for seed in range(20)}
        assert len(found) > 5
        again = {mutate(kind.data, kind.name, random.Random(seed)) for seed in range(20)}
        assert found == again


def test_a_fault_of_a_reader_is_told(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise KeyError((folder / "x").name)

    assert "KeyError" in attempt(FileKind("x", b"abc", fail), 0, tmp_path / "case")
