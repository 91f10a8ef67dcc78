"""Outputs of the sites of a tokenizer, against graphs with one output added by onnx."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from arvg_trt.graph.sites import load_sites
from arvg_trt.runtime.sessions.open import open_session
from arvg_trt.runtime.tokenizer import ImageTokenizer
from arvg_trt.validate.measure import tokenizer_sites
from arvg_trt.validate.measure.site_outputs import open_with_outputs
from arvg_trt.validate.measure.tokenizer_sites import measure_sites, parts
from arvg_trt.validate.report.files import load_report

from ...command_line import Finished

Image = NDArray[np.float32]


def images() -> list[Image]:
    random = np.random.default_rng(5)
    coarse = random.uniform(-1, 1, (2, 1, 3, 8, 8))
    return list(np.repeat(np.repeat(coarse, 8, axis=3), 8, axis=4).astype(np.float32))


def measured(workspace: Path) -> dict[str, float | None]:
    folders = workspace / "export", workspace / "quantize" / "int8"
    return measure_sites(*folders, images(), lambda done, count: None).decibels()


@pytest.fixture(scope="module")
def found(finished: Finished) -> dict[str, float | None]:
    return measured(finished.workspace)


def outputs(folder: Path, graph: str, tensor: str, feeds: list[dict[str, Image]]) -> list[Image]:
    """Run a graph to one tensor inside it, without optimizations."""
    model = onnx.load(folder / f"{graph}.onnx")
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)
    )
    session = open_session(
        folder / f"{graph}.onnx", optimized=False, graph=model.SerializeToString()
    )
    return [session.run(each, [tensor])[tensor] for each in feeds]


@pytest.mark.parametrize("graph", ["encoder", "decoder"])
def test_the_error_at_a_site_is_that_of_the_quantized_graph_fed_alike(
    finished: Finished, found: dict[str, float | None], graph: str
) -> None:
    workspace = finished.workspace
    if graph == "encoder":
        feeds = [{"image": image} for image in images()]
    else:
        fp32 = ImageTokenizer.reference(workspace / "export")
        feeds = [{"indices": fp32.encode(image)[0]} for image in images()]
    sites = [s for s in load_sites(workspace / "export").of_graph(graph) if s.name in found]
    for site in (sites[0], sites[len(sites) // 2], sites[-1]):
        wanted, actual = (
            outputs(folder, graph, site.output, feeds)
            for folder in (workspace / "export", workspace / "quantize" / "int8")
        )
        signal = sum((a.astype(np.float64) ** 2).sum() for a in wanted)
        noise = sum(
            ((a.astype(np.float64) - b) ** 2).sum() for a, b in zip(wanted, actual, strict=True)
        )
        assert found[site.name] == pytest.approx(10 * math.log10(signal / noise), abs=1e-6)


def test_sites_are_those_that_the_method_quantizes_in_graph_order(
    finished: Finished, found: dict[str, float | None]
) -> None:
    every = load_sites(finished.workspace / "export").sites
    assert list(found) == [s.name for s in every if s.weight and s.excluded is None]
    assert len(found) > 10 and all(value is not None and value > 5 for value in found.values())


def test_parts_that_fit_in_memory_give_the_same_figures(
    finished: Finished, found: dict[str, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    whole = open_with_outputs

    def counting(path: Path, tensors: list[str], threads: int = 0) -> object:
        taken.append(len(tensors))
        return whole(path, tensors, threads)

    monkeypatch.setattr(tokenizer_sites, "open_with_outputs", counting)
    monkeypatch.setattr(tokenizer_sites, "MOST_BYTES", 2**20)
    again = measured(finished.workspace)
    assert len(taken) > 4 and max(taken) > 1
    assert again == found


def test_a_report_of_a_tokenizer_has_them_for_the_qdq_graphs_alone(finished: Finished) -> None:
    folder = finished.workspace / "validate" / "int8"
    report = load_report(folder / "report.json")
    assert report.accuracy["qdq"].sites and not report.accuracy["engine"].sites
    assert "Which site hurts" in (folder / "report.html").read_text()
    assert "Output SQNR" in (folder / "report.md").read_text()


sizes = st.lists(st.integers(1, 50), max_size=20)


@given(sizes, st.integers(1, 60))
def test_parts_keep_all_names_in_order_and_their_limit(counts: list[int], most: int) -> None:
    by_name = {f"t{k}": count for k, count in enumerate(counts)}
    made = list(parts(list(by_name), by_name, most))
    assert [name for part in made for name in part] == list(by_name)
    for part in made:
        assert len(part) == 1 or sum(by_name[name] for name in part) <= most
    for part, after in itertools.pairwise(made):
        assert sum(by_name[name] for name in part) + by_name[after[0]] > most
