"""Run one search: sizes, measured losses, the program's plan, and what that plan really is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...calibrate.calibrated import Calibrated
from ...errors import RecipeError
from ...numerics.scheme import Plan
from ...recipe.quantize import FLOAT_BITS, QuantizeOptions
from ...workspace.stage import Reporter
from ..plan import check_plan
from ..write import write_quantized
from .budget import Budget, Form, form_bits, form_bytes, form_name, require_reachable, weights_of
from .candidates import Inputs, Model, SearchItem, of_width, whole_plan, widths
from .facts import SearchedSite, SearchFacts, Sensitivity, SiteLosses
from .knapsack import EqualChoice, Limit, allocate, least
from .losses import format_losses
from .propagation import ResponseCurve, balance

HALF_BITS = 16
# Times that the curves take in what the found plan measures, and the program is solved again.
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Found:
    """Hold the plan of a search and what its manifest says of it."""

    plan: Plan
    results: SearchFacts


class Search:
    """Quantizes into `scratch`, which it makes anew each time."""

    def __init__(
        self,
        source: Calibrated,
        plan: Plan,
        items: Sequence[SearchItem],
        options: QuantizeOptions,
        budgets: Sequence[Budget],
        samples: int,
        scratch: Path,
        reporter: Reporter,
    ) -> None:
        self.source = source
        self.plan = plan
        self.items = list(items)
        self.options = options
        self.budgets = list(budgets)
        self.samples = samples
        self.scratch = scratch
        self.reporter = reporter
        self.float_bits = FLOAT_BITS if source.generates else HALF_BITS
        self.ties = input_ties(self.items)
        self.weight_count = sum(weights_of(item.site) for item in self.items)

    def find(self) -> Found:
        """Measure, choose, and quantize what was chosen.

        Raises:
            RecipeError: a budget that no choice of formats reaches.
        """
        base = [of_width(item, self.likely_width()) for item in self.items]
        quantized = self.quantize(base)
        # Biases, norms, tables, sites that are not searched, and the file's header.
        self.fixed: float = self.packed_bytes() - sum(map(self.bytes_of, self.items, base))
        for budget in self.budgets:
            smallest = least(self.limit(budget).amounts, self.ties)
            of_size = budget.kind == "size"
            require_reachable(
                budget, smallest + self.fixed if of_size else smallest / self.weight_count
            )
        inputs = Inputs.read(self.scratch, quantized, self.items)
        self.model = Model(self.source, self.items, inputs, self.options, self.samples)
        self.losses = self.measure()
        self.responses = self.respond()
        while True:
            chosen, predicted = self.settle()
            measured = self.end_loss(chosen)
            even, width = self.best_uniform()
            if even is not None and even < measured:
                self.reporter.warn("one width for all sites measures better, and is the plan")
                chosen, measured = [of_width(item, width) for item in self.items], even
            self.quantize(chosen)
            over = max((self.packed_bytes() - b.most for b in self.sizes()), default=0.0)
            if over <= 0:
                break
            self.fixed += over  # tables of scaled inputs differ by width
        results = SearchFacts(
            predicted_loss=predicted,
            measured_loss=measured,
            quantized_loss=self.model.chain.end_loss_of(self.scratch),
            uniform_bits=width,
            uniform_loss=even,
            bytes=self.packed_bytes(),
            avg_bits=sum(map(self.bits_of, self.items, chosen)) / self.weight_count,
            sites=tuple(
                SearchedSite(
                    name=item.site.name,
                    graph=item.site.graph,
                    format=form_name(form, self.float_bits),
                    bytes=self.bytes_of(item, form),
                    loss=self.losses[k][item.forms.index(form)],
                )
                for k, (item, form) in enumerate(zip(self.items, chosen, strict=True))
            ),
        )
        return Found(whole_plan(self.plan, self.items, chosen), results)

    def measure(self) -> list[list[float]]:
        """Return the loss of each item's forms at its graph's output, with its rounded input."""
        self.found: list[SiteLosses] = []
        table = []
        seen: set[tuple[str, str]] = set()
        for k, item in enumerate(self.items):
            rows = format_losses(
                self.model.weight(item),
                [form for form in item.forms if form is not None],
                self.model.stats(item),
                self.model.smoothing(item),
                self.options,
                partial(self.model.own_loss, item),
            )
            tensor = (item.site.graph, item.site.input)
            of_input = 0.0
            if self.model.rounds_input(item) and tensor not in seen:
                seen.add(tensor)
                of_input = self.model.input_loss(item)
            table.append([*(row.loss + of_input for row in rows), 0.0])
            self.found.append(
                SiteLosses(
                    name=item.site.name,
                    graph=item.site.graph,
                    input_loss=of_input,
                    formats=tuple(rows),
                )
            )
            self.reporter.progress("losses of sites", k + 1, len(self.items))
        return table

    def respond(self) -> dict[str, ResponseCurve]:
        """Return what each graph alone costs at the end, with all its sites at one width."""
        found = {}
        for graph in self.model.graphs:
            points = []
            for bits in widths(self.items):
                forms = [of_width(item, bits) for item in self.items]
                sums = self.sums(forms)
                points.append((sums[graph], self.model.end_loss(forms, [graph])))
            found[graph] = ResponseCurve(tuple(points))
        return found

    def settle(self) -> tuple[list[Form], float]:
        """Return the program's plan, and its predicted loss at the end.

        What each graph of it really costs goes into the curves, and the program is solved again.
        """
        for last in reversed(range(ROUNDS)):
            forms, predicted = balance(self.responses, self.solve, self.sums)
            sums, before = self.sums(forms), dict(self.responses)
            for graph, response in before.items():
                if last and all(x != sums[graph] for x, _ in response.points):
                    point = sums[graph], self.model.end_loss(forms, [graph])
                    self.responses[graph] = ResponseCurve((*response.points, point))
            if self.responses == before:
                break
        return forms, predicted

    def solve(self, weights: Mapping[str, float]) -> list[Form]:
        """Return the formats of least weighted sum of losses within the budgets."""
        losses = [
            [loss * weights[item.site.graph] for loss in row]
            for item, row in zip(self.items, self.losses, strict=True)
        ]
        chosen = allocate(losses, [self.limit(b) for b in self.budgets], self.ties)
        if chosen is None:
            raise RecipeError(
                f"{' and '.join(b.text for b in self.budgets)} cannot be reached together",
                where="--budget",
                do="raise one of them",
            )
        return [item.forms[k] for item, k in zip(self.items, chosen, strict=True)]

    def sums(self, forms: Sequence[Form]) -> dict[str, float]:
        """Return the sums of the sites' losses by graph."""
        found = dict.fromkeys(self.model.graphs, 0.0)
        for item, form, row in zip(self.items, forms, self.losses, strict=True):
            found[item.site.graph] += row[item.forms.index(form)]
        return found

    def end_loss(self, forms: Sequence[Form]) -> float:
        return self.model.end_loss(forms, self.model.graphs)

    def best_uniform(self) -> tuple[float | None, int]:
        """Return loss and bits of the widest uniform formats that the budgets allow.

        None: none do.
        """
        for bits in reversed(widths(self.items)):
            forms = [of_width(item, bits) for item in self.items]
            chosen = [item.forms.index(form) for item, form in zip(self.items, forms, strict=True)]
            limits = [self.limit(budget) for budget in self.budgets]
            if all(limit.used(chosen) <= limit.most for limit in limits):
                return self.end_loss(forms), bits
        return None, 0

    def likely_width(self) -> int:
        """Return about the bits that a weight will have, for scales that depend on them.

        The size of all else is not known yet.
        """
        most = min(
            b.most if b.kind == "avg_bits" else 8 * b.most / self.weight_count for b in self.budgets
        )
        return max((b for b in widths(self.items) if b <= most), default=widths(self.items)[0])

    def sizes(self) -> list[Budget]:
        return [budget for budget in self.budgets if budget.kind == "size"]

    def limit(self, budget: Budget) -> Limit:
        measure = self.bits_of if budget.kind == "avg_bits" else self.bytes_of
        amounts = [[float(measure(item, form)) for form in item.forms] for item in self.items]
        if budget.kind == "avg_bits":
            return Limit(amounts, budget.most * self.weight_count)
        return Limit(amounts, budget.most - self.fixed)

    def bits_of(self, item: SearchItem, form: Form) -> int:
        return weights_of(item.site) * form_bits(form, self.float_bits)

    def bytes_of(self, item: SearchItem, form: Form) -> int:
        return form_bytes(item.site, form, self.float_bits)

    def quantize(self, forms: Sequence[Form]) -> Plan:
        """Quantize for real, into the scratch folder; returns the plan with its scales."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        plan = whole_plan(self.plan, self.items, forms)
        entries = check_plan(plan, self.source.planned)
        made = write_quantized(self.source, entries, self.options, self.scratch, self.reporter)
        return made.plan

    def packed_bytes(self) -> int:
        return (self.scratch / "weights.safetensors").stat().st_size

    def sensitivity(self) -> Sensitivity:
        return Sensitivity(
            samples=self.samples,
            sites=tuple(self.found),
            responses={graph: r.points for graph, r in self.responses.items()},
        )


def input_ties(items: Sequence[SearchItem]) -> list[EqualChoice]:
    """Return the ties of sites that share a rounded input: they stay float together."""
    first: dict[tuple[str, str], int] = {}
    ties = []
    for k, item in enumerate(items):
        if not item.rounds_input:
            continue
        leader = first.setdefault((item.site.graph, item.site.input), k)
        if leader != k:
            ends = len(items[leader].forms) - 1, len(item.forms) - 1
            ties.append(EqualChoice((leader, ends[0]), (k, ends[1])))
    return ties
