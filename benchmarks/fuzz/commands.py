"""Run whole commands on a small workspace whose files are mutated, and manifests mended.

A manifest names the digests of its files, so that most changes are refused at once: here it is
made to fit, as somebody does who edits a file and mends the digest.
"""

from __future__ import annotations

import json
import random
import shutil
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from ...cli import cli
from ...errors import EXIT_CODES, INTERNAL
from ...workspace.files import sha256_file
from ...workspace.manifest import MANIFEST
from .examples import SIDE, product
from .fuzz import Hang, limited
from .kept_files import TOLERANCES
from .mutations import mutate

CALIBRATE = ("calibrate", "{ws}", "--feeds", "{feeds}", "--samples", "3")
QUANTIZE = ("quantize", "{ws}", "--name", "other")
BUILD = ("build", "{ws}")
VALIDATE = ("validate", "{ws}", "--feeds", "{feeds}", "--rounds", "0", "--gate", "output_sqnr_db>0")
MOST_SECONDS = 120
# A file of the workspace, and the commands that read it.
FILES: dict[str, tuple[tuple[str, ...], ...]] = {
    "model.onnx": (("export", "onnx", "{new}", "--graph", "{file}"),),
    "feeds.npz": (CALIBRATE,),
    "mine.toml": (("run", "{file}", "--workspace", "{new}"),),
    "ws/export/model.onnx": (CALIBRATE, QUANTIZE, BUILD),
    "ws/export/sites.json": (CALIBRATE, QUANTIZE),
    "ws/calibrate/statistics.safetensors": (QUANTIZE, BUILD),
    "ws/calibrate/samples/00000.safetensors": (QUANTIZE,),
    "ws/calibrate/manifest.json": (QUANTIZE,),
    "ws/quantize/int8/plan.json": (BUILD, (*QUANTIZE, "--plan", "{file}")),
    "ws/quantize/int8/model.onnx": (BUILD, VALIDATE),
    "ws/quantize/int8/manifest.json": (BUILD, VALIDATE),
    "ws/validate/int8/report.json": (("compare", "{file}", "{file}"), ("inspect", "{file}")),
    "ws/workspace.json": (QUANTIZE,),
    "ws/times.json": (("run", "{recipe}", "--dry-run"),),
    "ws/calibrate/samples/names.json": (QUANTIZE,),
    "ws/quantize/int8/weights.safetensors": (BUILD, VALIDATE),
    "tolerances.toml": (("compare", "{report}", "{report}", "--tolerances", "{file}"),),
}
RECIPE = """schema = "arvg-trt/recipe/v1"
model = "onnx"
graphs = ["{root}/model.onnx"]
workspace = "{root}/ws"
name = "int8"
[calibrate]
feeds = "{root}/feeds.npz"
samples = 4
[validate]
feeds = "{root}/feeds.npz"
rounds = 0
"""


def command(args: tuple[str, ...]) -> tuple[int, str]:
    """Return exit code and stderr; of what the command line does not catch the traceback."""
    try:
        with limited(MOST_SECONDS), warnings.catch_warnings():
            warnings.simplefilter("error")
            result = CliRunner().invoke(cli, list(args))
    except Hang:
        return INTERNAL, f"does not end in {MOST_SECONDS} s\n"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        text = "".join(traceback.format_exception(result.exception))
        return INTERNAL, text
    return result.exit_code, result.stderr


def make_workspace(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "model.onnx").write_bytes(product().SerializeToString())
    rng = np.random.default_rng(0)
    np.savez(root / "feeds.npz", x=rng.normal(size=(4, SIDE)).astype(np.float32))
    (root / "mine.toml").write_text(RECIPE.format(root=root))
    (root / "tolerances.toml").write_bytes(TOLERANCES)
    code, error = command(("run", str(root / "mine.toml")))
    if code:
        raise SystemExit(f"the workspace to be changed cannot be made: {error}")
    shutil.rmtree(root / "ws" / "engines")  # made anew each time: nothing is up to date


def fit_manifest(file: Path, workspace: Path) -> None:
    """Write the digest of a changed file into every manifest that names it."""
    for path in workspace.rglob(MANIFEST):
        if path == file:
            continue
        found = json.loads(path.read_text())
        name = str(file.relative_to(path.parent)) if file.is_relative_to(path.parent) else None
        stage = file.relative_to(workspace).as_posix() if file.is_relative_to(workspace) else None
        for part, key in (("outputs", name), ("inputs", stage)):
            if key in found[part]:
                found[part][key] = sha256_file(file)
        path.write_text(json.dumps(found))


def run_commands(root: Path, mutations: int) -> list[dict[str, Any]]:
    """Return a row for each file, which says how its mutations ended."""
    valid = root / "valid"
    make_workspace(valid)
    rows = []
    for name, commands in FILES.items():
        start = time.monotonic()
        counts, faults = {"read": 0, "refused": 0}, []
        for seed in range(mutations):
            case = root / "case"
            shutil.copytree(valid, case)
            file = case / name
            file.write_bytes(mutate(file.read_bytes(), name, random.Random(seed)))
            fit_manifest(file, case / "ws")
            places = {
                "ws": case / "ws",
                "file": file,
                "new": case / "new",
                "feeds": case / "feeds.npz",
                "recipe": case / "mine.toml",
                "report": case / "ws" / "validate" / "int8" / "report.json",
            }
            for args in commands:
                code, error = command(tuple(arg.format(**places) for arg in args))
                lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
                if code == 0:
                    counts["read"] += 1
                elif code in EXIT_CODES and code != INTERNAL and len(lines) == 1:
                    counts["refused"] += 1
                else:
                    faults.append({"seed": seed, "fault": f"{' '.join(args)}: {code}\n{error}"})
            shutil.rmtree(case)
        row = {"kind": f"{name}, {len(commands)} commands", "mutations": mutations, **counts}
        rows.append({**row, "faults": faults, "grew": 0, "seconds": time.monotonic() - start})
        print(f"{name:<45} {counts['read']:>6} {counts['refused']:>6} {len(faults):>4}", flush=True)
        for fault in faults[:3]:
            print(f"  seed {fault['seed']}: {fault['fault']}", flush=True)
    return rows
