"""Compare an engine for the CPU, as it executes, with its Q/DQ graphs and with FP32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BuildError
from ...numerics.noise import masked_sqnr_db
from ...runtime.sessions.open import fast_session, reference_session
from ...runtime.sessions.session import OpenSession
from ...samples.files import TOKENIZER_GRAPHS, Arrays, GraphChain, load_sample

# Rounding outputs to uint8 adds about as much noise as the Q/DQ graph has: an engine is near that
# loses no more than that, and is refused far beyond.
NEAR_LOSS_DB = 3.0
WORST_LOSS_DB = 8.0
# Enough for a Q/DQ graph that is closer to FP32: float32 sums in another order differ by this.
EXACT_DB = 90.0
CHECK_SAMPLES = 2
TITLE = "ONNX Runtime"


@dataclass(frozen=True, slots=True)
class Difference:
    """Hold the ratios in dB at an output: Q/DQ graph to FP32, engine to both; NaN fails all.

    `title` is the back end's.
    """

    graph: str
    output: str
    lost: float
    agreement: float
    reached: float
    title: str = TITLE

    @property
    def is_near(self) -> bool:
        """Return whether the engine is about as close to FP32 as its Q/DQ graph is."""
        return self.is_held and self.reached >= min(self.lost - NEAR_LOSS_DB, EXACT_DB)

    @property
    def is_held(self) -> bool:
        """Return whether the engine is not refused.

        It may differ from its Q/DQ graph by what that lost against FP32, and by `WORST_LOSS_DB`
        more, however little that is.
        """
        return self.agreement >= self.least

    @property
    def least(self) -> float:
        return min(self.lost - WORST_LOSS_DB, EXACT_DB)

    def problem(self, engine: Path) -> BuildError:
        """Return the error of an engine that is refused."""
        return BuildError(
            f"the {self.title} {self.graph} is {self.agreement:.1f} dB from its Q/DQ graph at "
            f"{self.output}, which is {self.lost:.1f} dB from FP32: {self.least:.1f} is the least",
            where=str(engine / f"{self.graph}.onnx"),
            do="quantize again with --exclude for the sites that lose most (`arvg-trt diagnose` "
            "ranks them)",
        )


def check_engine(
    source: Path,
    export: Path,
    engine: Path,
    samples: Sequence[Path],
    graphs: Sequence[str] = TOKENIZER_GRAPHS,
    *,
    session: OpenSession = fast_session,
    title: str = TITLE,
) -> None:
    """Compare the engine as executed with its Q/DQ graph, graph by graph.

    Raises:
        BuildError: an output that differs by more, or is not finite in the same places.
    """
    expected = Expected.of(source, export, samples, graphs)
    for each in differences(expected, engine, session=session, title=title):
        if not each.is_held:
            raise each.problem(engine)


@dataclass(frozen=True, slots=True)
class Expected:
    """Hold samples with what the FP32 graphs make of them, and the Q/DQ graphs of what those give.

    They are the same for every engine that is tried.
    """

    graphs: Sequence[str]
    samples: Sequence[Arrays]
    exact: Sequence[Arrays]
    simulated: Sequence[Arrays]

    @classmethod
    def of(
        cls, source: Path, export: Path, samples: Sequence[Path], graphs: Sequence[str]
    ) -> Expected:
        """Run the graphs of `export`, and those of `source` on what they give."""
        arrays = [load_sample(path) for path in samples]
        fp32 = GraphChain.open(export, graphs, session=reference_session)
        exact = [fp32.run(feeds) for feeds in arrays]
        del fp32
        chain = GraphChain.open(source, graphs, session=reference_session)
        return cls(graphs, arrays, exact, run_given(chain, arrays, exact))


def run_given(
    chain: GraphChain, arrays: Sequence[Arrays], references: Sequence[Arrays]
) -> list[dict[str, NDArray[Any]]]:
    """Return what each graph of a chain makes of samples and of what the FP32 graphs gave it."""
    return [chain.run(feeds, given=made) for feeds, made in zip(arrays, references, strict=True)]


def differences(
    expected: Expected, engine: Path, *, session: OpenSession = fast_session, title: str = TITLE
) -> list[Difference]:
    """Return what the engine's graphs differ by at each output of floats, fed what FP32 gives."""
    chain = GraphChain.open(engine, expected.graphs, session=session)
    executed = run_given(chain, expected.samples, expected.exact)
    found = []
    for name in expected.exact[0]:
        exact, in_reference, actual = (
            np.concatenate([np.ravel(each[name]) for each in runs])
            for runs in (expected.exact, expected.simulated, executed)
        )
        if not np.issubdtype(exact.dtype, np.floating):
            continue
        graph, _, output = name.partition("/")
        found.append(
            Difference(
                graph,
                output,
                lost=masked_sqnr_db(exact, in_reference),
                agreement=masked_sqnr_db(in_reference, actual),
                reached=masked_sqnr_db(exact, actual),
                title=title,
            )
        )
    return found
