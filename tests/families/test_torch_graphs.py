"""A family's modules in PyTorch give what its exported graphs give, as a second opinion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from arvg_trt.errors import ExportError
from arvg_trt.families.shared.job import ExportJob
from arvg_trt.families.shared.torch_graphs import TorchGraph
from arvg_trt.families.variants import find_model, shipped_checkpoint
from arvg_trt.runtime.families import find_family
from arvg_trt.runtime.sessions.open import reference_session
from arvg_trt.samples.images import ImageSource
from arvg_trt.validate.opinion.by_torch import opinion_of_torch
from arvg_trt.workspace.stage import SilentReporter

from ..minis.minis import Mini

GRAPHS = {
    "gsq": {"encoder", "decoder"},
    "rar": {"encoder", "decoder", "full"},
    "par": {"encoder", "decoder", "full"},
    "llamagen": {"encoder", "decoder", "full"},
    "var": {"encoder", "decoder", "full"},
    "mar": {"encoder", "decoder", "pass", "denoise"},
}
SIDE, FEW = 8, 3  # of a map of codes; rows, tokens that are known


def job_of(name: str) -> ExportJob:
    entry = find_model(name)
    folder = Path(shipped_checkpoint(entry))
    files = next(names for names in entry.files if all((folder / n).is_file() for n in names))
    return ExportJob(
        entry=entry,
        spec=str(folder),
        paths=tuple(folder / name for name in files),
        source=ImageSource(()),
        reporter=SilentReporter(),
    )


def random_feeds(path: Path) -> dict[str, np.ndarray]:
    """Feeds of the types and shapes that a graph takes; what may vary is small."""
    rng = np.random.default_rng(2)
    feeds = {}
    for value in ir.load(path).graph.inputs:
        assert value.shape is not None and value.dtype is not None
        rows = [d if isinstance(d, int) else None for d in value.shape]
        shape = [1 if d is None and k == 0 else d or FEW for k, d in enumerate(rows)]
        if value.name == "image":
            shape = [1, 3, *(d if isinstance(d, int) else 64 for d in rows[2:])]
        elif value.name in ("indices", "latent"):
            free = [k for k, d in enumerate(rows) if d is None and k > 0]
            shape = [SIDE if k in free else d for k, d in enumerate(shape)]
        kind = value.dtype.numpy()
        if value.name == "position_ids":
            feeds[value.name] = rng.permutation(shape[1])[None].astype(kind)
        elif np.issubdtype(kind, np.integer):
            feeds[value.name] = rng.integers(0, 5, shape).astype(kind)
        else:
            feeds[str(value.name)] = (0.5 * rng.normal(size=shape)).astype(kind)
    return feeds


@pytest.mark.parametrize("family", GRAPHS)
def test_torch_gives_what_every_exported_graph_gives(
    family: str, mini_of: Callable[[str], Mini]
) -> None:
    name = f"{family}-mini"
    export = mini_of(family).workspace / "export" if family != "gsq" else None
    graphs = find_family(find_model(name).family).load_exporter().torch_graphs(job_of(name))
    assert graphs.keys() == GRAPHS[family]
    for graph, module in graphs.items() if export else ():
        path = export / f"{graph}.onnx"
        feeds = random_feeds(path)
        ours, theirs = dict(reference_session(path).run(feeds)), module.run(feeds)
        assert ours.keys() == theirs.keys(), graph
        found = opinion_of_torch(graph, [ours], [theirs])
        assert found.agrees, (graph, found)


def test_feeds_and_outputs_must_fit_a_module() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a, a + 1

    graph = TorchGraph(Two(), ("a",), ("x", "y"))
    found = graph.run({"a": np.zeros(2, np.float32), "unused": np.zeros(1)})
    assert found["y"].tolist() == [1, 1]
    with pytest.raises(ExportError, match="has no a among its feeds"):
        graph.run({})
    with pytest.raises(ExportError, match="gives 2 outputs, where 1 have names"):
        TorchGraph(Two(), ("a",), ("x",)).run({"a": np.zeros(1, np.float32)})
