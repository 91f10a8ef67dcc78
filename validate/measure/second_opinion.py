"""Check the sessions here by Polygraphy's: the same graph and feeds, opened and compared by it.

A figure of accuracy is only as good as the two sessions that it was measured in: of FP32 and of the
Q/DQ graphs. Polygraphy opens each graph by its own runner of ONNX Runtime and compares outputs by
its own rules. Engines are left out: they round at other places than their graph does in a session
without optimizations, and some tokens differ. The feeds lie in Polygraphy's JSON form beside the
report, so that `polygraphy run --load-inputs` repeats a comparison, also with runners that need a
GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

from ...extras import not_installed
from ...runtime.sessions.open import reference_session
from ...runtime.sessions.session import Array
from ...samples.files import GraphChain, load_sample, sample_files

FOLDER = "second-opinion"  # of the report's folder, with a file of feeds a graph
# Both run the same kernels, and gave equal bits in a tokenizer, a generator and a linear; what
# threads add up in another order may differ by less than this.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


class SecondOpinion(msgspec.Struct, frozen=True, kw_only=True):
    """Compare a graph's outputs in our session with those in Polygraphy's runner, fed alike.

    ``max_error`` is the largest absolute difference of any output.
    """

    candidate: str
    graph: str
    outputs: int
    max_error: float
    agrees: bool


def second_opinions(
    folders: Mapping[str, Path], graphs: Sequence[str], samples: Path, report: Path
) -> tuple[SecondOpinion, ...]:
    """Return how far Polygraphy's outputs are from ours, for the `graphs` in each of `folders`.

    Each graph is fed the first of the saved `samples`, or what the graphs before it make of it; the
    feeds are written below `report`.

    Raises:
        ArvgError: Polygraphy is not installed.
    """
    if find_spec("polygraphy") is None:
        raise not_installed({"rtx": ["polygraphy"]})
    from polygraphy.json import save_json

    found = []
    feeds: dict[str, dict[str, Array]] = {}
    for candidate, folder in folders.items():
        chain = GraphChain.open(folder, graphs, session=reference_session)
        if not feeds:
            feeds = dict(graph_feeds(chain, samples))
            (report / FOLDER).mkdir()
            for graph, arrays in feeds.items():
                save_json([arrays], str(report / FOLDER / f"{graph}.json"))
        for graph, arrays in feeds.items():
            ours = chain.sessions[graph].run(arrays)
            path = folder / f"{graph}.onnx"
            found.append(compared(candidate, path, arrays, ours))
    return tuple(found)


def graph_feeds(chain: GraphChain, samples: Path) -> Iterator[tuple[str, dict[str, Array]]]:
    """Yield what each graph is fed with the first saved sample of it."""
    outputs: dict[str, Array] = {}
    for graph, session in chain.sessions.items():
        arrays = load_sample(sample_files(samples, graph)[0], session.inputs)
        feeds = chain.feeds(graph, arrays, outputs)
        outputs |= {f"{graph}/{name}": value for name, value in session.run(feeds).items()}
        yield graph, feeds


def compared(
    candidate: str, path: Path, feeds: Mapping[str, Array], ours: Mapping[str, Array]
) -> SecondOpinion:
    """Run a graph by Polygraphy and compare its outputs with `ours`."""
    import onnxruntime as ort
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    # Optimized by default, ONNX Runtime rounds the inputs of products with INT8 weights alone: 0.04
    # instead of 0 on a linear of 64 channels.
    plain = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    load = SessionFromOnnx(str(path), graph_optimization_level=plain)
    G_LOGGER.colors = False  # else it warns of a package that it would colour its lines with
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        theirs = Comparator.run([OnnxrtRunner(load, name="polygraphy")], data_loader=[dict(feeds)])
        run = IterationResult(outputs=dict(ours), runner_name="arvg-trt")
        both = RunResults([("arvg-trt", [run]), *theirs])
        exact = {name: np.issubdtype(value.dtype, np.integer) for name, value in ours.items()}
        rule = SimpleCompareFunc(
            rtol={name: 0.0 if equal else RELATIVE for name, equal in exact.items()},
            atol={name: 0.0 if equal else ABSOLUTE for name, equal in exact.items()},
        )
        agrees = bool(Comparator.compare_accuracy(both, compare_func=rule))
    given = theirs[0][1][0]
    errors = [largest_difference(np.asarray(given[name]), value) for name, value in ours.items()]
    return SecondOpinion(
        candidate=candidate,
        graph=path.stem,
        outputs=len(ours),
        max_error=max(errors, default=0.0),
        agrees=agrees,
    )


def largest_difference(a: Array, b: Array) -> float:
    if not a.size:
        return 0.0
    return float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
