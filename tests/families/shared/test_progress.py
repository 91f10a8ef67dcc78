"""An export says which graph it has written, from another process too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arvg_trt.families.variants import MODELS, find_model
from arvg_trt.pipeline.export import export_any
from arvg_trt.workspace import worker_process
from arvg_trt.workspace.stage import SilentReporter
from arvg_trt.workspace.workspace import Workspace

MODEL = "rar-mini"


class Heard(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def progress(self, task: str, done: int, total: int) -> None:
        self.told.append((task, done, total))


def test_a_generators_export_says_which_graphs_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "POLL_SECONDS", 0.01)
    heard = Heard()
    with Workspace(tmp_path / "ws") as workspace:
        checkpoint = str(MODELS / MODEL)
        arguments: Any = (workspace, MODEL, checkpoint, "skimage", [], heard)
        export_any(*arguments)
    graphs = find_model(MODEL).graphs
    counted = [told for told in heard.told if told[2]]
    assert {total for _, _, total in counted} == {len(graphs) + 2}
    done = [done for _, done, _ in counted]
    assert done == sorted(done) and done[0] == 0 and done[-1] == len(graphs) + 2
    tasks = [task for task, _, _ in counted]
    assert tasks[0] == "export: reading the checkpoint"
    named = {graph for graph in graphs if f"export: exporting graphs, {graph} is written" in tasks}
    assert len(named) >= 3, tasks  # two may come between two looks
    assert any(task.startswith("export: comparing with PyTorch, ") for task in tasks), tasks
