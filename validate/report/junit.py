"""Write a report as JUnit XML: a test case a gate, and one a group of sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ...quantize.facts import SiteRow
from ..formats import metric_text
from ..intervals.figure import plain
from ..metrics.image import decibels
from .gates import Gate, metric_of, parse_gate
from .interval_tables import headline_interval
from .schema import METRIC_NAMES, Report, metrics
from .site_tables import site_outputs
from .spread import busy_text

SITE_GATE = "site_sqnr_db"
# Properties of the suite of gates: the main figures, whether gates read them or not.
SHOWN = ("psnr_drop", "ssim_drop", "token_agreement", "kl", "top1", "output_sqnr_db")
SHOWN_COUNTED = ("compression", "speedup", "latency_ms")


def junit(report: Report, seconds: float = 0.0) -> bytes:
    """Return JUnit XML; `seconds` is what measuring took, all gates together.

    An inconclusive gate is a failure of the type "inconclusive". Sites of one graph and format are
    a group, which fails where a gate on `site_sqnr_db` did and one of them is beyond it; sites that
    are not quantized are skipped.
    """
    root = ElementTree.Element("testsuites", name=f"arvg-trt validate {report.model} {report.name}")
    add_gates(root, report, seconds)
    add_sites(root, report)
    for key in ("tests", "failures", "errors", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in root)))
    root.set("time", f"{seconds:.3f}")
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()


def add_gates(root: ElementTree.Element, report: Report, seconds: float) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name="gates", time=f"{seconds:.3f}")
    properties = {
        "model": report.model,
        "quantization": report.name,
        "measured": report.headline or "nothing",
        "processor": report.cpu.model,
        **{f"version.{name}": version for name, version in sorted(report.versions.items())},
    }
    found = metrics(report)
    for name in (*SHOWN, *SHOWN_COUNTED):
        value = found[name]
        if value is not None:
            properties[name] = metric_text(name, value)
    add_properties(suite, properties)
    for gate in report.gates:
        name = metric_of(gate.expression)
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{report.model}.{report.name}",
            name=gate.expression,
        )
        of_case = {"value": "" if gate.value is None else metric_text(name, gate.value)}
        of_case |= {"interval": headline_interval(report, name)}
        of_case |= {"machine": busy_text(report, name)}
        of_case |= {"samples": "" if gate.n is None else str(gate.n)}
        add_properties(case, {key: text for key, text in of_case.items() if text})
        if not gate.passed:
            message = f"{gate.reason or gate.verdict}, wanted {gate.expression}"
            ElementTree.SubElement(case, "failure", type=gate.verdict, message=message)
    count(suite, len(report.gates), failures=sum(not gate.passed for gate in report.gates))


def add_sites(root: ElementTree.Element, report: Report) -> None:
    """Add a suite with a case a group of sites of one graph and format."""
    groups: dict[tuple[str, str, str], list[SiteRow]] = {}
    for site in report.sites:
        groups.setdefault((site.graph, site.weight, site.activation), []).append(site)
    if not groups:
        return
    suite = ElementTree.SubElement(root, "testsuite", name="sites")
    outputs = site_outputs(report)
    gates = [
        parse_gate(gate.expression, METRIC_NAMES)
        for gate in report.gates
        if not gate.passed and plain(metric_of(gate.expression)) == SITE_GATE
    ]
    failures = skipped = 0
    for (graph, weight, activation), sites in groups.items():
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{report.model}.{report.name}.{graph}",
            name=f"{graph}: weights {weight}, inputs {activation}",
        )
        add_properties(case, {"sites": str(len(sites)), **worst(sites, outputs)})
        beyond = [text for gate in gates for text in violations(gate, sites, outputs)]
        reasons = {site.reason for site in sites}
        if beyond:
            ElementTree.SubElement(case, "failure", type="failed", message="; ".join(beyond))
            failures += 1
        elif None not in reasons:
            text = ", ".join(sorted(str(reason) for reason in reasons))
            ElementTree.SubElement(case, "skipped", message=f"not quantized: {text}")
            skipped += 1
    count(suite, len(groups), failures=failures, skipped=skipped)


def worst(sites: Sequence[SiteRow], outputs: Mapping[str, float | None]) -> dict[str, str]:
    """Return the least SQNR of the outputs, weights and inputs of sites, with the site's name."""
    kinds: dict[str, dict[str, float | None]] = {
        "output_sqnr": {s.name: outputs[s.name] for s in sites if s.name in outputs},
        "weight_sqnr": {s.name: s.weight_sqnr_db for s in sites if s.weight_sqnr_db is not None},
        "input_sqnr": {
            s.name: s.activation_sqnr_db for s in sites if s.activation_sqnr_db is not None
        },
    }
    found = {}
    for kind, values in kinds.items():
        if values:
            name = min(values, key=lambda site: decibels(values[site]))
            found[kind] = f"{metric_text(SITE_GATE, decibels(values[name]))} ({name})"
    return found


def violations(
    gate: Gate, sites: Sequence[SiteRow], outputs: Mapping[str, float | None]
) -> list[str]:
    """Return the sites whose output is beyond a gate, with what they are."""
    values = {s.name: decibels(outputs[s.name]) for s in sites if s.name in outputs}
    return [
        f"{name} has {value:.6g} dB, wanted {gate}"
        for name, value in values.items()
        if not gate.holds(value) and not math.isinf(value)
    ]


def add_properties(element: ElementTree.Element, properties: Mapping[str, str]) -> None:
    if properties:
        parent = ElementTree.SubElement(element, "properties")
        for name, value in properties.items():
            ElementTree.SubElement(parent, "property", name=name, value=value)


def count(suite: ElementTree.Element, tests: int, *, failures: int, skipped: int = 0) -> None:
    numbers = {"tests": tests, "failures": failures, "errors": 0, "skipped": skipped}
    for key, number in numbers.items():
        suite.set(key, str(number))
