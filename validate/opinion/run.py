"""Ask for second opinions on a validation: the same held-out feeds, run in other ways.

Polygraphy opens FP32 and the Q/DQ graphs with its own runner and comparator, PyTorch runs the
checkpoint's own module. Each gives the outputs again, and with them the figure that a validation is
about. The feeds lie in Polygraphy's JSON form beside the report, so that `polygraphy run
--load-inputs` repeats a comparison, also with runners that need a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ...extras import not_installed
from ...runtime.devices import this_device
from ...runtime.sessions.open import reference_session
from ..report.schema import FP32, QDQ
from .by_polygraphy import compared
from .by_torch import Outputs, opinion_of_torch, run_by_torch
from .checkpoint import FoundCheckpoint
from .compare import Arrays, figure_opinions
from .facts import Opinions, SecondOpinion
from .feeds import Feeds, present

FOLDER = "second-opinion"  # of the report's folder, with a file of feeds a graph
REPLAY = "the feeds replay it: polygraphy run GRAPH.onnx --trt --load-inputs GRAPH.json"


def second_opinions(
    folders: Mapping[str, Path],
    feeds: Feeds,
    report: Path,
    checkpoint: FoundCheckpoint | str,
    threads: int = 0,
) -> Opinions:
    """Return what other ways of running say of the graphs in `folders`, of FP32 and the Q/DQ graph.

    `feeds` are those of held-out samples, and are written below `report`. `checkpoint` is the one
    that FP32 was exported from, or says why it is not at hand.

    Raises:
        ArvgError: Polygraphy is not installed.
    """
    require_polygraphy()
    opinions: list[SecondOpinion] = []
    ours: dict[str, Outputs] = {}
    theirs: dict[str, Outputs] = {}
    for candidate, folder in folders.items():
        own = present(feeds, folder)
        ours[candidate], theirs[candidate] = {}, {}
        for graph, runs in own.items():
            session = reference_session(folder / f"{graph}.onnx", threads)
            given = [dict(session.run(run)) for run in runs]
            opinion, found = compared(candidate, folder / f"{graph}.onnx", runs, given)
            ours[candidate][graph], theirs[candidate][graph] = given, found
            opinions.append(opinion)
    write_feeds(report / FOLDER, feeds)
    figures = [
        figure
        for graph in ours.get(QDQ, {})
        for figure in figure_opinions(
            graph,
            "polygraphy",
            (ours[FP32][graph], ours[QDQ][graph]),
            (theirs[FP32][graph], theirs[QDQ][graph]),
        )
    ]
    not_run = [tensorrt_text()]
    by_torch = asked(checkpoint, present(feeds, folders[FP32]))
    if isinstance(by_torch, str):
        not_run.append(f"PyTorch: {by_torch}")
        by_torch = {}
    for graph in [graph for graph in ours[FP32] if graph not in by_torch and by_torch]:
        not_run.append(f"PyTorch, {graph}: this family has no module of that graph alone")
    for graph, found in by_torch.items():
        opinions.append(opinion_of_torch(graph, ours[FP32][graph], found))
        if graph in ours.get(QDQ, {}):
            quantized = ours[QDQ][graph]
            pairs = (both(ours[FP32][graph], found), quantized), (found, quantized)
            figures += figure_opinions(graph, "torch", *pairs)
    return Opinions(graphs=tuple(opinions), figures=tuple(figures), not_run=tuple(not_run))


def require_polygraphy() -> None:
    """Check that Polygraphy is there; call it before long work.

    Raises:
        ArvgError: it is not installed; names the extra that has it.
    """
    if find_spec("polygraphy") is None:
        raise not_installed({"rtx": ["polygraphy"]})


def both(ours: Sequence[Arrays], theirs: Sequence[Arrays]) -> list[Arrays]:
    """Return our outputs, of those that the other way of running has too."""
    return [{name: run[name] for name in run if name in theirs[0]} for run in ours]


def asked(checkpoint: FoundCheckpoint | str, feeds: Feeds) -> Outputs | str:
    """Return what PyTorch gives of the feeds, or why it was not run."""
    if isinstance(checkpoint, str):
        return checkpoint
    if find_spec("torch") is None:
        return "it is not installed (pip install 'arvg-trt[export]')"
    with TemporaryDirectory() as scratch:
        found = run_by_torch(checkpoint, feeds, Path(scratch))
    return found or "this family has no module of a graph alone"


def tensorrt_text() -> str:
    """Return why TensorRT was not asked: without a GPU it cannot run, and here it never has."""
    device = this_device()
    if not device.gpus:
        why = device.driver_problem or "there is no GPU"
        return f"TensorRT by Polygraphy's TrtRunner: not executed here, {why}; {REPLAY}"
    return f"TensorRT by Polygraphy's TrtRunner: not executed by this command; {REPLAY}"


def write_feeds(folder: Path, feeds: Feeds) -> None:
    """Write the feeds of each graph as Polygraphy reads them."""
    from polygraphy.json import save_json

    folder.mkdir()
    for graph, runs in feeds.items():
        if runs:  # arrays of a .npz may be mapped files, which Polygraphy does not encode
            plain = [{name: np.asarray(value) for name, value in run.items()} for run in runs]
            save_json(plain, str(folder / f"{graph}.json"))


def warnings_of(opinions: Opinions) -> Iterator[str]:
    """Yield a line for each way of running that does not agree."""
    for opinion in opinions.graphs:
        if not opinion.agrees:
            name = "Polygraphy" if opinion.by == "polygraphy" else "PyTorch"
            yield f"{opinion.graph} of {opinion.candidate}: {name}'s outputs are not those here"
    for figure in opinions.figures:
        if not figure.agrees:
            yield (
                f"{figure.graph}/{figure.output}: by {figure.by} the quantization is "
                f"{figure.apart_db:.3g} dB from what was measured here"
            )
