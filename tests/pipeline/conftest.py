"""One finished workspace of the shipped model, made once; tests that change it take a copy."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from arvg_trt.cli import cli
from arvg_trt.families.zoo import MODELS
from arvg_trt.runtime.generator import Generated, Generator
from arvg_trt.workspace.artifacts import WORKSPACE_FILE

from ..families.mar.models import TinyMar
from ..shared import made_once
from .minis import LABELS, Mini, Quantized

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


PROGRESS = re.compile(r"(working|.* \d+ of \d+), (\d+ h \d+ min|(\d+ min )?\d+ s)")
# With this seed the first pass, which knows no token, is among those that are kept.
MAR_CHOICE = ("--labels", "0-2", "--seed", 3)


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

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
    """What a command says on stderr, whatever time it takes: lines of long stages are left out."""
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
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, without_progress(err))


def send_in_the_middle(number: signal.Signals, folder: Path, args: Sequence[object]) -> Outcome:
    """Start a command; once the temporary sibling of `folder` is there, send it the signal."""
    process = start(*args)
    deadline = time.monotonic() + 60
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
    """As a refusal, but what was measured is printed, and where the report lies."""
    assert outcome.out.rstrip().endswith("report.html"), outcome
    assert_refused(Outcome(outcome.code, "", outcome.err), 8, *words)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("pipeline")
    photos = Path(str(resources.files("skimage.data")))
    for folder, name, size in (
        ("calibration", "coffee.png", (96, 80)),
        ("calibration", "rocket.jpg", (80, 96)),
        ("validation", "astronaut.png", (96, 96)),
    ):
        (root / folder).mkdir(exist_ok=True)
        small = Image.open(photos / name).resize(size)
        small.save(root / folder / Path(name).with_suffix(".png"))
    recipe = root / "tiny.toml"
    places = {name: root / name for name in ("workspace", "calibration", "validation")}
    recipe.write_text(RECIPE.format(**places))
    folder = root / "workspace" / "export"
    killed = send_in_the_middle(signal.SIGKILL, folder, ("run", recipe))
    left = bool(leftovers(root / "workspace"))
    outcome = wait_for(start("run", recipe))
    assert outcome.code == 0, outcome.err
    return Finished(
        root, recipe=recipe, killed=killed, left_by_kill=left, outcome=outcome, **places
    )


@pytest.fixture
def workspace(finished: Finished, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "ws"
    shutil.copytree(finished.workspace, copy)
    return copy


@pytest.fixture
def exported(finished: Finished, tmp_path: Path) -> Path:
    """A copy in which only the export was done."""
    copy = tmp_path / "ws"
    shutil.copytree(finished.workspace / "export", copy / "export")
    shutil.copy(finished.workspace / WORKSPACE_FILE, copy)
    return copy


@pytest.fixture(scope="session")
def mini_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Mini]:
    """The shipped mini of a family, exported once; tests that change its workspace take a copy."""

    @cache
    def make(family: str) -> Mini:
        def export(root: Path) -> Generated:
            outcome = arvg("export", f"{family}-mini", root / "ws")
            assert outcome.code == 0, outcome
            return Generator.open(root / "ws").generate(LABELS, seed=1, batch_size=10)

        root, made = made_once(tmp_path_factory, f"{family}_mini", export)
        return Mini(family, root / "ws", made)

    return make


@pytest.fixture(scope="session")
def quantized_of(
    mini_of: Callable[[str], Mini], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Quantized]:
    """The mini of a family with its W8A8 Q/DQ graphs, made once."""

    @cache
    def make(family: str) -> Quantized:
        mini = mini_of(family)

        def quantize(root: Path) -> None:
            shutil.copytree(mini.workspace, root / "ws")
            outcome = arvg("calibrate", root / "ws", "--samples", 20, "--batch-size", 8)
            assert outcome.code == 0, outcome
            outcome = arvg("quantize", root / "ws", "--name", "w8a8", "--rounding", "gptq")
            assert outcome.code == 0, outcome

        root, _ = made_once(tmp_path_factory, f"{family}_quantized", quantize)
        return Quantized(mini, root / "ws")

    return make


@pytest.fixture(scope="session")
def quantized_mar(tiny_mar: TinyMar, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MAR's workspace: calibrated on six pictures, made four and two at a time; quantized
    as w8a8 and w6a6.
    """

    def make(root: Path) -> None:
        copy = root / "ws"
        shutil.copytree(tiny_mar.workspace, copy)
        outcome = arvg("calibrate", copy, "--samples", 6, *MAR_CHOICE)
        assert outcome.code == 0, outcome
        for bits in (8, 6):
            options = ("--weight-bits", bits, "--activation-bits", bits)
            outcome = arvg("quantize", copy, "--name", f"w{bits}a{bits}", *options)
            assert outcome.code == 0, outcome

    return made_once(tmp_path_factory, "quantized_mar", make)[0] / "ws"


def pictures(folder: Path, count: int, side: int) -> Path:
    """Noise, as 0.png and so on in a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for k in range(count):
        noise = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.png")
    return folder
