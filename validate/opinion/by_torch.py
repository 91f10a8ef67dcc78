"""Run the checkpoint's own module in PyTorch, and compare the exported FP32 graphs with it.

Neither the exporter nor ONNX Runtime has a part in what PyTorch computes. It runs in a process of
its own, so that its memory is free again, and that nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from ...errors import ArvgError
from ...families.shared.job import ExportJob
from ...families.variants import find_model
from ...runtime.families import find_family
from ...samples.images import ImageSource
from ...workspace.stage import SilentReporter
from ...workspace.worker_process import WorkerCrash, run_isolated, serve_worker
from ..report.schema import FP32
from .checkpoint import FoundCheckpoint
from .compare import Arrays, finite, largest_errors, torch_agrees
from .facts import TORCH_ERROR, TORCH_TOKENS, SecondOpinion
from .feeds import Array, Feeds

LIMIT = f"{TORCH_ERROR:g} of the RMS, {100 * TORCH_TOKENS:g} % of integers equal"
Outputs = dict[str, list[dict[str, Array]]]


class TorchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Name the checkpoint, and by graph how many files of feeds lie in a folder."""

    model: str
    spec: str
    paths: tuple[str, ...]
    weights: Literal["ema", "model"] | None
    folder: str
    runs: dict[str, int]


def run_by_torch(found: FoundCheckpoint, feeds: Feeds, scratch: Path) -> Outputs | str:
    """Return what PyTorch gives of the feeds, by graph, or in words why it gave nothing.

    Graphs that a family has no module for are left out. Arrays go through files in `scratch`.
    """
    for graph, runs in feeds.items():
        for k, arrays in enumerate(runs):
            plain = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
            save_file(plain, scratch / f"{graph}-{k}-feeds.safetensors")
    request = TorchRequest(
        model=found.model,
        spec=found.spec,
        paths=tuple(map(str, found.paths)),
        weights="ema" if found.weights == "ema" else "model" if found.weights else None,
        folder=str(scratch),
        runs={graph: len(runs) for graph, runs in feeds.items()},
    )
    try:
        ran = run_isolated(__name__, request, tuple[str, ...])
    except (ArvgError, WorkerCrash, RuntimeError) as error:
        return str(error)
    return {
        graph: [
            dict(load_file(scratch / f"{graph}-{k}-torch.safetensors"))
            for k in range(len(feeds[graph]))
        ]
        for graph in ran
    }


def run(request: TorchRequest) -> tuple[str, ...]:
    """Run what the family has modules for in this process; returns the names of those graphs."""
    entry, folder = find_model(request.model), Path(request.folder)
    job = ExportJob(
        entry=entry,
        spec=request.spec,
        paths=tuple(map(Path, request.paths)),
        source=ImageSource(()),
        reporter=SilentReporter(),
        weights=request.weights,
    )
    graphs = find_family(entry.family).load_exporter().torch_graphs(job)
    chosen = [graph for graph in request.runs if graph in graphs]
    for graph in chosen:
        for k in range(request.runs[graph]):
            feeds = load_file(folder / f"{graph}-{k}-feeds.safetensors")
            outputs = graphs[graph].run(feeds)
            plain = {name: np.ascontiguousarray(value) for name, value in outputs.items()}
            save_file(plain, folder / f"{graph}-{k}-torch.safetensors")
    return tuple(chosen)


def opinion_of_torch(
    graph: str, ours: Sequence[Mapping[str, Array]], theirs: Sequence[Arrays]
) -> SecondOpinion:
    """Compare FP32's outputs with PyTorch's, over what both have."""
    names = [name for name in ours[0] if name in theirs[0]]
    kept = [{name: run[name] for name in names} for run in ours]
    largest, relative, equal = largest_errors(kept, theirs)
    exact = [np.issubdtype(ours[0][name].dtype, np.integer) for name in names]
    return SecondOpinion(
        candidate=FP32,
        graph=graph,
        outputs=len(names),
        max_error=finite(largest),
        agrees=bool(names) and torch_agrees(relative, equal),
        by="torch",
        samples=len(ours),
        relative_error=None if all(exact) else finite(relative),
        equal=equal if any(exact) else None,
        limit=LIMIT,
    )


if __name__ == "__main__":
    serve_worker(TorchRequest, run)
