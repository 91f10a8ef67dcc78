"""Runs the command as users do, and says what became of it."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner
from PIL import Image

from arvg_trt.cli import cli
from arvg_trt.families.variants import MODELS

MODEL = "cosmos-mini-di8x8"


CHECKPOINT = MODELS / MODEL / "model.safetensors"


RECIPE = """
schema = "arvg-trt/recipe/v1"
model = "cosmos-mini-di8x8"
workspace = "{workspace}"
name = "int8"

[calibrate]
images = "{calibration}"
samples = 2
batch_size = 2
size = 64

[validate]
images = "{validation}"
size = 64
rounds = 2
warmup = 1
gates = ["compression>=3"]
"""


PROGRESS = re.compile(r"((\w+: )?working|\w+: .* \d+ of \d+), (\d+ h \d+ min|(\d+ min )?\d+ s)")


# With this seed the first pass, which knows no token, is among those that are kept.
MAR_CHOICE = ("--labels", "0-2", "--seed", 3)


def commands() -> dict[str, click.Command]:
    """Every command by its words, such as `ci github`, in order; groups are none themselves."""
    found: dict[str, click.Command] = {}
    for name, command in sorted(cli.commands.items()):
        if isinstance(command, click.Group):
            found |= {f"{name} {inner}": each for inner, each in sorted(command.commands.items())}
        else:
            found[name] = command
    return found


@dataclass(frozen=True)
class Outcome:
    """Hold what a command printed, and its exit code."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Finished:
    """A recipe whose run was killed in the export and started again, and what that printed."""

    root: Path
    workspace: Path
    recipe: Path
    calibration: Path
    validation: Path
    killed: Outcome
    left_by_kill: bool
    outcome: Outcome


def arvg(*args: object) -> Outcome:
    """Run a command in this process; what the command line does not catch is raised."""
    result = CliRunner().invoke(cli, [str(a) for a in args], prog_name="arvg-trt")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, without_progress(result.stderr))


def without_progress(err: str) -> str:
    """Return what a command says on stderr, without the lines of long stages."""
    return "".join(line for line in err.splitlines(True) if not PROGRESS.fullmatch(line.rstrip()))


def skipped_twice(recipe: Path) -> list[bool]:
    """Run a recipe without engines twice: the stages that the first run skips; the second all."""
    first, again = (json.loads(arvg("run", recipe, "--json").out)["stages"] for _ in range(2))
    stages = ["export", "calibrate", "quantize", "validate"]
    assert [stage["manifest"]["stage"] for stage in first] == stages
    assert all(stage["skipped"] for stage in again)
    return [stage["skipped"] for stage in first]


def start(*args: object, **options: object) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "arvg_trt", *(str(a) for a in args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def wait_for(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=600)  # against a hang, not for speed
    return Outcome(process.returncode, out, without_progress(err))


def send_in_the_middle(number: signal.Signals, folder: Path, args: Sequence[object]) -> Outcome:
    """Start a command; once the temporary sibling of `folder` is there, send it the signal."""
    process = start(*args)
    deadline = time.monotonic() + 300
    while not list(folder.parent.glob(f".{folder.name}.*.tmp")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    return wait_for(process)


def digests(root: Path) -> dict[str, str]:
    """Every file below `root`, hidden ones too, with its sha256."""
    if root.is_file():
        return {root.name: hashlib.sha256(root.read_bytes()).hexdigest()}
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def leftovers(root: Path) -> list[Path]:
    """Temporary and set-aside siblings below `root`."""
    return [p for p in root.rglob(".*") if p.suffix in (".tmp", ".old")]


def assert_refused(outcome: Outcome, code: int, *words: str) -> None:
    """One line on stderr that starts with `error: ` and holds `words`, and nothing on stdout."""
    assert outcome.err.startswith("error: "), outcome
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err
    assert outcome.code == code, outcome
    assert outcome.out == ""


def assert_gate_failed(outcome: Outcome, *words: str) -> None:
    """Check that a gate failed, that the figures are printed, and the report's place."""
    assert outcome.out.rstrip().endswith("report.html"), outcome
    assert_refused(Outcome(outcome.code, "", outcome.err), 8, *words)


def pictures(folder: Path, count: int, side: int) -> Path:
    """Noise, as 0.png and so on in a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for k in range(count):
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.png")
    return folder
