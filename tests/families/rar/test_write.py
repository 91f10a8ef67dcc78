"""The graphs of a RAR, in what they do not share with other cached transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from arvg_trt.errors import ExportError
from arvg_trt.runtime.sessions.open import reference_session

from ..shared.graphs import (
    assert_every_weight_is_stored_once,
    operators,
    relative,
    sites_of,
    watched,
)
from ..shared.models import random_tokens
from ..shared.token_families import RAR
from .models import SMALL, TinyRar

LABELS = np.array([2, 0, 5])  # the last is the null class
POSITIONS = SMALL.positions
pytestmark = pytest.mark.usefixtures("one_thread")


def test_condition_graph_gives_each_position_its_modulation(tiny_rar: TinyRar) -> None:
    """Any positions in any order, each as the modules have it; gains are 1 + scale."""
    model, ids = tiny_rar.transformer, np.array([3, 0, POSITIONS - 1])
    condition = reference_session(tiny_rar.folder / "condition.onnx")
    found = condition.run({"labels": LABELS, "position_ids": ids})
    wanted = model.conditions(torch.from_numpy(LABELS), torch.from_numpy(ids))
    for i, modulation in enumerate(model.modulations(wanted)):
        part = found["modulation"][:, :, i]
        assert relative(part.reshape(*part.shape[:2], -1), modulation) < 1e-5
    head = found["head_modulation"]
    assert relative(head.reshape(*head.shape[:2], -1), model.adaln_before_head(wanted)) < 1e-5


def test_what_is_constant_is_not_in_the_step(tiny_rar: TinyRar) -> None:
    """No modulation linear, no SiLU: those depend on the class and the position alone."""
    path = tiny_rar.folder / "step.onnx"
    found = operators(path)
    assert "Sigmoid" not in found
    nodes = onnx.load(path, load_external_data=False).graph.node
    assert not [n.name for n in nodes if "adaLN" in n.name]
    assert found.count("Where") == 1  # the mask, once for all blocks


def test_every_weight_is_stored_once(tiny_rar: TinyRar) -> None:
    assert_every_weight_is_stored_once(tiny_rar.folder, (*RAR.graphs, "encoder", "decoder"))


def test_the_positions_of_a_site_are_the_same_in_all_graphs(tiny_rar: TinyRar) -> None:
    """Statistics of the full graph belong to the positions that a step's `position_ids` name."""
    inputs = [s.input for s in sites_of(tiny_rar.folder, ["full"]) if s.weight]
    path = tiny_rar.folder.parent / "full.onnx"
    onnx.save(watched(tiny_rar.folder / "full.onnx", inputs), path)
    tokens = random_tokens(SMALL, 1, SMALL.length - 1).numpy()
    found = reference_session(path).run({"labels": LABELS[:1], "tokens": tokens}, inputs)
    assert {found[name].shape[1] for name in inputs} == {POSITIONS}


def test_references_of_another_label_are_refused(tiny_rar: TinyRar) -> None:
    """Guards the check itself: the condition is compared, not only run."""
    tokens = random_tokens(SMALL, 2, SMALL.length)
    references = RAR.references(tiny_rar.transformer, torch.from_numpy(LABELS[1:]), tokens)
    other = replace(references, steps=replace(references.steps, labels=np.array([1, 1])))
    with pytest.raises(ExportError, match=r"condition\.onnx: modulation"):
        RAR.check(tiny_rar.folder, other)
