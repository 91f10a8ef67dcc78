"""Files for CI and baselines need nothing beside the base install; intervals need an extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "skimage", "jinja2", "matplotlib", "scipy")
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({(*HEAVY, "yaml", "huggingface_hub")!r}))
from arvg_trt.cli import cli
for words in (
    "ci github cosmos-mini-int8 -o github.yml",
    "ci gitlab cosmos-mini-int8 -o gitlab.yml",
    f"baseline save {{sys.argv[1]}} -o base.json",
    f"baseline update base.json {{sys.argv[1]}}",
    f"compare base.json {{sys.argv[1]}} --summary summary.md",
):
    try:
        cli(words.split(" "))
    except SystemExit as ended:
        judges = words.startswith(("baseline update", "compare"))
        assert ended.code == int(judges), words
"""


def test_files_and_baselines_are_written_without_extras(report: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(report.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "report.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pip install 'arvg-trt[report]'") == 2
    assert {path.name for path in tmp_path.iterdir()} >= {"github.yml", "gitlab.yml", "base.json"}
