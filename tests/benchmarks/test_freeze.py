"""The same input gives the same artefacts, and `freeze` reports where it does not.

Two runs in different folders and processes, whose hashes of text and sets differ, must leave the
same digests: one in the process of the tests, and one as users run it, a process a command. What
these are depends on the machine, so none is written here. For a tokenizer
`tests/commands/test_cli.py` tests the same.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arvg_trt.benchmarks.freeze.freeze import (
    WORKSPACE,
    differences,
    digest_folder,
    read_digests,
    run_command,
    run_model,
    write_digests,
)
from arvg_trt.benchmarks.freeze.models import CUSTOM, FORMATS, MODELS
from arvg_trt.families.variants import MODELS as SHIPPED

from ..command_line import arvg
from ..minis.minis import Mini

OTHER = "0" * 64


def freeze(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "arvg_trt.benchmarks.freeze", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_here(*arguments: object, refusal: int = 0) -> int:
    """Run a command in this process, which saves seconds of imports."""
    outcome = arvg(*arguments)
    assert outcome.code in (0, refusal), outcome
    return outcome.code


def test_a_second_run_is_the_same_and_a_changed_baseline_is_told(tmp_path: Path) -> None:
    first = run_model("custom", ["w4a16"], tmp_path / "first", run=run_here)
    assert {name.split("/")[1] for name in first} >= {"export", "calibrate", *FOLDERS}
    changed, missing = "custom/quantize/w4a16/plan.json", "custom/export/removed.onnx"
    additional = "custom/engines/w4a16/onnxruntime/custom.onnx"
    before = first | {changed: OTHER, missing: OTHER}
    del before[additional]
    not_run = {"custom/quantize/fp8/plan.json": OTHER, "var-mini/export/sites.json": OTHER}
    write_digests(tmp_path / "before.txt", before | not_run)
    choice = ("--models", "custom", "--formats", "w4a16", "--out", tmp_path / "second.txt")
    done = freeze(*choice, "--compare", tmp_path / "before.txt")
    assert done.returncode == 1, done.stderr
    told = [f"missing: {missing}", f"differs: {changed}", f"additional: {additional}"]
    assert sorted(done.stdout.splitlines()) == sorted(told)
    assert read_digests(tmp_path / "second.txt")[1] == first


def test_every_shipped_mini_is_frozen_in_every_format() -> None:
    shipped = {folder.name for folder in SHIPPED.iterdir() if list(folder.glob("*.safetensors"))}
    frozen = {name: model.export[0] for name, model in MODELS.items() if name != CUSTOM}
    assert len(shipped) > 5 and set(frozen.values()) == shipped
    for name, model in MODELS.items():
        assert set(model.quantize) <= set(FORMATS), name
        assert name == CUSTOM or frozen[name].startswith(name)


def test_runs_of_a_generator_from_one_export_are_the_same(
    mini_of: Callable[[str], Mini], tmp_path: Path
) -> None:
    found = []
    for name, run in (("one", run_command), ("two", run_here)):
        workspace = tmp_path / name / WORKSPACE
        shutil.copytree(mini_of("var").workspace / "export", workspace / "export")
        found.append(run_model("var-mini", ["fp8"], workspace.parent, run=run))
    assert found[0] == found[1]
    assert {name.split("/")[1] for name in found[0]} >= {"export", "calibrate", *FOLDERS}


FOLDERS = ("quantize", "engines", "validate")
MANIFEST = {
    "versions": {"arvg-trt": "0.2.0", "numpy": "2.4.6"},
    "outputs": {"report.md": "1" * 64, "report.json": "2" * 64, "plan.json": "3" * 64},
    "results": {"engines": [{"bytes": 10, "build_seconds": 0.25}], "packed_bytes": 7},
}


def digest_of(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return digest_folder(folder)[name]


def test_versions_and_durations_of_a_manifest_do_not_count(tmp_path: Path) -> None:
    other = json.loads(json.dumps(MANIFEST))
    other["versions"] = {"arvg-trt": "0.3.0"}
    other["outputs"]["report.md"] = "4" * 64
    other["results"]["engines"][0]["build_seconds"] = 1.5e-05
    texts = [json.dumps(value, indent=2) for value in (MANIFEST, other)]
    assert len({digest_of(tmp_path, "manifest.json", text) for text in texts}) == 1
    assert len({digest_of(tmp_path, "plan.json", text) for text in texts}) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"bytes": 10', '"bytes": 11'),
        ('"packed_bytes": 7', '"packed_bytes": 7.0'),
        ("3" * 64, "5" * 64),
        ("}\n}", "}\n}\n"),
    ],
)
def test_all_else_of_a_manifest_counts(tmp_path: Path, old: str, new: str) -> None:
    text = json.dumps(MANIFEST, indent=2)
    assert text.count(old) == 1
    before, after = (
        digest_of(tmp_path, "manifest.json", t) for t in (text, text.replace(old, new))
    )
    assert before != after


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("report.md", "| cpu | onnxruntime | decoder | {} s |\n- CPU: {}\n- Versions: {}"),
        (
            "report.html",
            '<td class="number" data-label="Build">{} s</td><li>CPU: {}</li><li>Versions: {}</li>',
        ),
    ],
)
def test_build_time_processor_and_versions_of_a_report_do_not_count(
    tmp_path: Path, name: str, line: str
) -> None:
    texts = [line.format("0.2", "A", "numpy 1"), line.format("12.5", "B; avx2", "numpy 2")]
    assert len({digest_of(tmp_path, name, text) for text in texts}) == 1
    assert digest_of(tmp_path, name, "x" + texts[0]) != digest_of(tmp_path, name, texts[0])


def test_a_changed_byte_a_missing_and_an_added_file_are_told(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx", "deep/c.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode() * 1000)
    before = digest_folder(tmp_path)
    assert differences(before, digest_folder(tmp_path)) == []
    data = bytearray((tmp_path / "deep/c.safetensors").read_bytes())
    data[500] ^= 1
    (tmp_path / "deep/c.safetensors").write_bytes(data)
    (tmp_path / "b.onnx").rename(tmp_path / "d.onnx")
    found = differences(before, digest_folder(tmp_path))
    assert found == ["missing: b.onnx", "additional: d.onnx", "differs: deep/c.safetensors"]
