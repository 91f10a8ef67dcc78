"""The graphs of a PAR, in what they do not share with other cached transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from arvg_trt.errors import ExportError

from ..shared.graphs import sites_of
from ..shared.models import random_tokens
from ..shared.token_families import PAR
from .models import SMALL, TinyPar


def test_gate_and_up_share_their_input(tiny_par: TinyPar) -> None:
    of = {s.name: s for s in sites_of(tiny_par.folder, ["full"])}
    shared = of["layers.0.feed_forward.w1"].shares_input_with
    assert shared == ("layers.0.feed_forward.w3",)


@pytest.mark.usefixtures("one_thread")
def test_a_step_at_another_position_is_refused(tiny_par: TinyPar) -> None:
    """Guards the check itself: with the rotation of other cells the logits differ."""
    tokens = random_tokens(SMALL, 2, SMALL.length)
    references = PAR.references(tiny_par.transformer, torch.tensor([0, 5]), tokens)
    PAR.check(tiny_par.folder, references)
    sequence = references.sequence.copy()
    sequence[:, 2:4] = sequence[:, [3, 2]]
    assert not np.array_equal(sequence, references.sequence)
    with pytest.raises(ExportError, match=r"step\.onnx: logits .* at 1 tokens behind 2"):
        PAR.check(tiny_par.folder, replace(references, sequence=sequence))


def test_the_same_weights_are_the_files_of_both_graphs(tiny_par: TinyPar) -> None:
    places = []
    for graph in PAR.graphs:
        proto = onnx.load(tiny_par.folder / f"{graph}.onnx", load_external_data=False)
        places.append(
            {
                i.name: next(e.value for e in i.external_data if e.key == "offset")
                for i in proto.graph.initializer
                if i.external_data
            }
        )
    sites = sites_of(tiny_par.folder, PAR.graphs)
    linears = {s.weight for s in sites if s.weight and s.weight in places[0]}
    assert linears and all(places[0][name] == places[1][name] for name in linears)
