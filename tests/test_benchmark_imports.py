"""Benchmarks measure what users have: they import public and stage-level names alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import arvg_trt

from .test_rooms import FLOOR, ROOT, imported

# Patterns of names below the package, by what they are; a pattern covers what lies below it.
ALLOWED: Mapping[str, tuple[str, ...]] = {
    "the public face": ("api", *arvg_trt.__all__),
    "the command line's entry": ("cli",),
    "stages, their options, their folders": ("pipeline", "recipe", "workspace"),
    "sessions and loops, with what families and generators say": ("runtime", "errors"),
    "artefacts and their readers": (
        *("graph.sites", "numerics.scheme", "samples.files", "samples.images"),
        *("validate.report", "validate.compare", "validate.metrics", "numerics.noise"),
    ),
    "models by name, and networks that make stand-ins for checkpoints": (
        *("families.variants", "families.*.config", "families.*.model"),
    ),
    "each other": ("benchmarks",),
}
READERS = "every reader of a file is tried alone, with what it checks before a stage's work begins"
VALID = "the file of each kind is written as the stage that leaves it writes it"
PASSES = "times the two passes of a calibration apart and on the same graph, which no stage does"
# Modules that may import more, with the reason.
EXCEPTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "calibration/variants.py": (
        PASSES,
        (
            *("calibrate.calibration_run", "calibrate.observers.smoothed", "calibrate.statistics"),
            *("graph.io", "numerics.qparams"),
            *("quantize.groups", "quantize.plan", "quantize.token_qparams", "quantize.run"),
        ),
    ),
    "diagnosis/planted_faults.py": (
        "each fault measures the spoiled site alone again, which the command does for all sites",
        (
            *("calibrate.calibrated", "explain.site_diagnosis", "graph.builder", "graph.io"),
            *("quantize.chains", "validate.diagnose"),
        ),
    ),
    "roofline.py": (
        "predictions of single layers are compared with measured ones",
        ("engines.roofline",),
    ),
    "fuzz/bundles.py": (
        "bundles are written whole and then forged, which no stage does",
        ("engines.bundle.contents", "engines.bundle.write"),
    ),
    "fuzz/bundle_readers.py": (
        "a packed folder is written alone, which a stage does in a bundle",
        ("engines.packed.write",),
    ),
    "fuzz/files.py": (
        READERS,
        (
            *("calibrate.statistics", "quantize.plan", "samples.inputs", "explain.inspect"),
            *("export.checkpoint.config_json", "export.checkpoint.read"),
            *("families.custom.canonical", "families.custom.parity", "families.custom.sites"),
            "families.gsq.yaml",
        ),
    ),
    "fuzz/kept_files.py": (
        READERS,
        (
            *("calibrate.facts", "calibrate.shards", "quantize.facts", "quantize.search.facts"),
            *("engines.facts", "engines.bundle.kit", "engines.roofline.machine"),
            *("export.checkpoint.read", "numerics.packing", "samples.saved", "validate.facts"),
            *("validate.evaluate.reference", "validate.evaluate.shards", "validate.index"),
            *("validate.index_page", "validate.quality.open"),
        ),
    ),
    "run_cost.py": (
        "it writes what dry runs read",
        ("explain.dry_run", "explain.recipes", "explain.run_costs"),
    ),
    "ablation/scaling_choice.py": (
        "a choice as it was before is put in the place of today's",
        ("quantize.scaling.token_rounding",),
    ),
    "fuzz/examples.py": (
        VALID,
        (
            *("calibrate.statistics", "numerics.packing", "numerics.weight"),
            *("families.custom.canonical", "families.custom.sites"),
        ),
    ),
}
BENCHMARKS = sorted(path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py"))


def is_covered(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a pattern fits the first parts of a dotted name."""
    parts = name.split(".")
    return any(
        len(wanted) <= len(parts) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split(".") for pattern in patterns)
    )


def own_names(relative: Path) -> Iterator[str]:
    """Yield the names of this package that a module imports, without the package's."""
    for name in sorted(imported(relative)):
        package, _, rest = name.partition(".")
        if package == "arvg_trt":
            yield rest


def inner_names(relative: Path) -> list[str]:
    """Return the imported names that are neither public nor those of a stage."""
    patterns = tuple(pattern for group in ALLOWED.values() for pattern in group)
    return [name for name in own_names(relative) if not is_covered(name, patterns)]


def test_the_walk_sees_the_benchmarks_and_tells_names_apart() -> None:
    """Guards the rules below against a walk that finds nothing, and patterns that fit all."""
    rooms = {name.partition(".")[0] for path in BENCHMARKS for name in own_names(path)}
    assert len(BENCHMARKS) > 20 and rooms >= {"pipeline", "recipe", "runtime", "workspace"}
    assert is_covered("families.var.model.VarTransformer", ALLOWED_OF_FAMILIES)
    for inner in ("write", "export", "checkpoint", "loop", "spec"):
        assert not is_covered(f"families.var.{inner}.name", ALLOWED_OF_FAMILIES)
    assert not is_covered("families", ALLOWED_OF_FAMILIES)
    every = tuple(pattern for group in ALLOWED.values() for pattern in group)
    for inner in ("export", "calibrate", "quantize", "engines", "extras", "commands"):
        assert inner in FLOOR and not is_covered(f"{inner}.module.name", every)
    for inner in ("numerics.gptq", "validate.measure.features", "samples.sources", "graph.io"):
        assert not is_covered(f"{inner}.name", every)


ALLOWED_OF_FAMILIES = ALLOWED["models by name, and networks that make stand-ins for checkpoints"]


@pytest.mark.parametrize(
    "path", [p for p in BENCHMARKS if str(p.relative_to("benchmarks")) not in EXCEPTIONS], ids=str
)
def test_a_benchmark_imports_public_and_stage_level_names(path: Path) -> None:
    assert not inner_names(path)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_an_exception_covers_what_is_imported_and_nothing_else(name: str) -> None:
    reason, patterns = EXCEPTIONS[name]
    found = inner_names(Path("benchmarks") / name)
    assert reason and not [inner for inner in found if not is_covered(inner, patterns)]
    assert not [p for p in patterns if not any(is_covered(inner, (p,)) for inner in found)]
