"""Choose the sites to raise, and say what that gains and costs in bytes and time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from ..engines.roofline.forms import raise_seconds
from ..engines.roofline.machine import find_machine
from ..engines.roofline.model import predict_model
from ..engines.roofline.predict import Prediction
from ..graph.sites import Site
from ..numerics.scheme import SitePlan
from ..recipe.commands import DiagnoseOptions
from ..validate.diagnose.diagnosis import (
    GraphFindings,
    QuantizedGraph,
    measure_raises,
    relative_db,
)
from ..validate.diagnose.facts import Raised
from ..validate.diagnose.ranking import Candidate, candidate, leave_one, ranked
from ..workspace.stage import Reporter
from ..workspace.workspace import Workspace


def prediction_for(workspace: Workspace, target: str | None) -> Prediction | None:
    """Return what the model's products cost on a target, for one image; None without a target.

    Raises:
        BuildError: an unknown target, or a shape that is not known.
    """
    if target is None:
        return None
    return predict_model(workspace, find_machine(target), images=1)


def choose(
    found: Mapping[str, GraphFindings],
    sites: Sequence[Site],
    entries: Mapping[str, SitePlan],
    asked: DiagnoseOptions,
    prediction: Prediction | None = None,
) -> list[Candidate]:
    """Return the sites to raise, the best first; their noise is relative to that of the model."""
    candidates = []
    for site in sites:
        if site.graph not in found:
            continue
        own = found[site.graph]
        alone = own.alone[site.name]
        noises = [0.0 if part is None else part.relative for part in (alone.input, alone.weight)]
        each = candidate(
            site, entries[site.name], asked.to, own.at_outputs[site.name] / len(found), *noises
        )
        if each is not None and each.gone > 0:
            seconds = (
                None if prediction is None else raise_seconds(prediction, each.entry, each.raised)
            )
            candidates.append(replace(each, seconds=seconds))
    return leave_one(ranked(candidates, asked.order)[: asked.count], entries, asked.to)


def measured_raises(
    graphs: Mapping[str, QuantizedGraph],
    best: Sequence[Candidate],
    asked: DiagnoseOptions,
    reporter: Reporter,
) -> list[float | None]:
    """Return the relative noise with none, the first, ... raised; to 8 bits only with none."""
    order = [each.site for each in best] if asked.to == "high" else []
    found = measure_raises(graphs, order, reporter.progress)
    return found + [None] * (len(best) - len(order))


def raised_rows(
    best: Sequence[Candidate], noise: float, measured: Sequence[float | None]
) -> tuple[Raised, ...]:
    """Return the rows of what is raised, with what errors that add up predict, and what is so.

    Predicted is the share of the `noise` that stays, of what the other samples have.
    """
    rows, left, base = [], noise, measured[0]
    for each, reached in zip(best, measured[1:], strict=True):
        left -= each.gone
        finite = base is not None and math.isfinite(left) and math.isfinite(noise)
        rows.append(
            Raised(
                name=each.site.name,
                graph=each.site.graph,
                to=each.to,
                kib=each.nbytes / 1024,
                us=msgspec.UNSET if each.seconds is None else 1e6 * each.seconds,
                predicted_db=relative_db(base * left / noise) if finite and base else None,
                measured_db=relative_db(reached),
            )
        )
    return tuple(rows)
