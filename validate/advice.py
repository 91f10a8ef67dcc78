"""Say what to do about gates that failed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from ..quantize.facts import SiteRow
from ..recipe.validate import ValidateOptions
from ..runtime.spec import DECODER
from ..workspace.workspace import RECIPE_FILE
from .intervals.figure import COUNTED, plain
from .intervals.speeds import SPEEDS
from .report.gates import GateResult, metric_of

RAISED = 3  # sites that the advice on an image decoder names
HELD_OUT = ("images", "feeds", "labels", "seed", "size")  # options that `diagnose` has too


def advice(
    failed: Iterable[GateResult],
    sites: Iterable[SiteRow],
    folder: Path,
    options: ValidateOptions,
) -> str:
    """Return what to do about failed gates of a validation in its `folder` of a workspace.

    Of an image decoder's, it says which sites to raise first. What costs accuracy otherwise,
    `diagnose` finds; a workspace without a recipe has none to change.
    """
    failed = list(failed)
    names = [plain(metric_of(gate.expression)) for gate in failed]
    if any(gate.value is None and name in SPEEDS for gate, name in zip(failed, names, strict=True)):
        return (
            "times are of an engine that runs here: build one for the CPU (`arvg-trt build`), and "
            "validate with --rounds 1 or more, without --skip-engine"
        )
    if any(metric_of(gate.expression).startswith("decoder_psnr") for gate in failed):
        return decoder_advice(sites)
    root = folder.parent.parent
    has_recipe = (root / RECIPE_FILE).is_file()
    if {*names} <= {*SPEEDS, *COUNTED}:
        change = "change the recipe" if has_recipe else "quantize or build otherwise, or change"
        return f"open the report, then {change}{' or' if has_recipe else ''} the gate"
    # A workspace that `run` made has the samples in its recipe.
    command = diagnosis(root, folder.name, ValidateOptions() if has_recipe else options)
    change = "then change the recipe or the gate" if has_recipe else "or change the gate"
    return f"`{command}` says which sites to raise; {change}"


def diagnosis(root: Path, name: str, options: ValidateOptions) -> str:
    """Return the command that diagnoses a quantization on the samples of a validation."""
    words = ["arvg-trt", "diagnose", str(root), "--name", name]
    default = ValidateOptions()
    for option in HELD_OUT:
        value = getattr(options, option)
        if value != getattr(default, option):
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def decoder_advice(sites: Iterable[SiteRow]) -> str:
    """Return which sites of an image decoder to leave out, those that are rounded most coarsely."""
    noise = {
        site.name: min(known)
        for site in sites
        if site.graph == DECODER
        and (known := [v for v in (site.weight_sqnr_db, site.activation_sqnr_db) if v is not None])
    }
    worst = sorted(noise, key=lambda name: noise[name])[:RAISED]
    named = ", ".join(f"{name} ({noise[name]:.1f} dB)" for name in worst)
    more = f"exclude those that are rounded most coarsely, {named}; or set " if worst else "set "
    return f"{more}decoder_bits = 32, or change the gate"
