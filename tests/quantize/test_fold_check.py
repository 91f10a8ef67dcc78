"""Folds are tried on a sample before they are applied; one that does not hold is not applied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from arvg_trt.graph.sites import FoldPart, ProducerFold, SiteMap

from ..families.custom.models import WIDTH, Node, random, small_graph
from ..families.generators import TinyGenerator, full_logits
from .custom_quantized import CustomGraph, custom_graph
from .test_rounding import quantize, sqnr

W = WIDTH
X, HELD_OUT = random(0, 32, 6, W), random(7, 16, 6, W)


def norm_then_relu(folder: Path) -> CustomGraph:
    nodes: list[Node] = [
        ("LayerNormalization", ["x", "g", "b"], "n", {}),
        ("Relu", ["n"], "t", {}),
        ("MatMul", ["t", "w"], "y", {}),
    ]
    held = {"g": np.exp(1.5 * random(1, W)), "b": random(2, W), "w": random(3, W, W)}
    return custom_graph(small_graph(folder / "g.onnx", nodes, held), X)


def test_a_scale_folded_through_relu_costs_nothing(tmp_path: Path) -> None:
    """Layer norm, ReLU, linear: 5.5 dB where the norm's bias was left as it was."""
    own = norm_then_relu(tmp_path)
    (site,) = own.site_map.sites
    assert site.producer_fold is not None and len(site.producer_fold.divide) == 2
    bare = SiteMap(sites=(msgspec.structs.replace(site, producer_fold=None),), graphs=("g",))
    found, wanted = (
        replace(own, site_map=m).sqnr(tmp_path / name, HELD_OUT, smoothing=0.5)
        for name, m in (("folded", own.site_map), ("bare", bare))
    )
    assert found > wanted - 0.5 and wanted > 20


def test_a_wrong_fold_is_refused_with_its_reason(tmp_path: Path) -> None:
    own = norm_then_relu(tmp_path)
    (site,) = own.site_map.sites
    fold = ProducerFold(divide=(FoldPart(initializer="g", axis=0, start=0),), subtract=())
    wrong = SiteMap(sites=(msgspec.structs.replace(site, producer_fold=fold),), graphs=("g",))
    plan, results = replace(own, site_map=wrong).quantize(tmp_path / "q", smoothing=0.5)
    assert "node of its own" in str(plan.sites[0].reason)
    assert plan.sites[0].activation is not None and results[0].reason == plan.sites[0].reason
    assert replace(own, site_map=wrong).sqnr(tmp_path / "again", HELD_OUT, smoothing=0.5) > 20


def test_a_generators_wrong_fold_is_refused(tiny_var: TinyGenerator, tmp_path: Path) -> None:
    """The gain of an adaLN alone, without its shift; the other folds stay."""
    sites = []
    for site in tiny_var.site_map.sites:
        fold = site.producer_fold
        if fold is not None and site.name.endswith("blocks.0.ffn.fc1"):
            fold = msgspec.structs.replace(fold, divide=fold.divide[:1], subtract=())
            site = msgspec.structs.replace(site, producer_fold=fold)
        sites.append(site)
    site_map = msgspec.structs.replace(tiny_var.site_map, sites=tuple(sites))
    wrong = replace(tiny_var, site_map=site_map)
    plan = quantize(wrong, tmp_path / "q", smoothing=0.5)
    refused = [s.name for s in plan.sites if s.reason and "node of its own" in s.reason]
    assert refused == ["blocks.0.ffn.fc1"]
    exact = full_logits(tiny_var, tiny_var.folder)
    assert sqnr(full_logits(wrong, tmp_path / "q"), exact) > 20
