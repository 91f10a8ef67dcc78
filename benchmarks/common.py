"""Share what benchmarks need: images, a random model, result files, a measured subprocess."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from ..families.cosmos.config import CosmosConfig
from ..families.cosmos.model import CosmosTokenizer
from ..pipeline.calibrate import calibrate_stage
from ..recipe.calibrate import CalibrateOptions
from ..runtime.images import Uint8Image, center_crop
from ..samples.images import ImageSource, open_source
from ..validate.metrics.latency import read_cpu
from ..workspace.stage import SilentReporter, package_versions
from ..workspace.workspace import Workspace

RESULTS = Path(__file__).parent / "results"
CALIBRATION_PHOTOGRAPHS = "skimage:coffee,rocket,motorcycle_left,motorcycle_right"
HELD_OUT_PHOTOGRAPHS = "skimage:astronaut,chelsea,hubble_deep_field,retina"
SIZE = 256
GAIN_SPREAD = 0.4
NORM_SPREAD = 0.5

# Peak resident memory is read inside the process: what wait4 reports of a child includes pages
# of the parent that started it.
MEASURED = """
import atexit, pathlib, runpy, sys
target, sys.argv = sys.argv[1], sys.argv[2:]
def report():
    status = pathlib.Path("/proc/self/status").read_text()
    pathlib.Path(target).write_text(status.split("VmHWM:")[1].split()[0])
atexit.register(report)
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


class QuietReporter(SilentReporter):
    """Report nothing but warnings."""

    def warn(self, line: str) -> None:
        click.echo(f"warning: {line}", err=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """Hold wall seconds and peak resident megabytes (10^6 bytes) of a fresh process."""

    seconds: float
    peak_mb: float


def run_measured(arguments: Sequence[str], scratch: Path, python: str = sys.executable) -> Measured:
    """Run `python -m MODULE ARGUMENTS` (or a .py file) in a fresh process.

    Raises:
        subprocess.CalledProcessError: it failed; its output was shown.
    """
    target = scratch / "peak_kib"
    start = time.perf_counter()
    done = subprocess.run(
        [python, "-c", MEASURED, str(target), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        click.echo(done.stdout, err=True)
        done.check_returncode()
    return Measured(seconds, int(target.read_text()) * 1024 / 1e6)


def data_folder(data: Path | None, name: str) -> str | None:
    """Return the source `DATA/NAME`, or None with a message where the folder is absent."""
    if data is not None and (data / name).is_dir():
        return str(data / name)
    click.echo(f"no folder {name} in --data: photographs of scikit-image instead", err=True)
    return None


def center_crops(source: ImageSource, indices: Sequence[int]) -> Iterator[tuple[str, Uint8Image]]:
    """Yield (file name, SIZE x SIZE centre crop) of the chosen files."""
    for k in indices:
        yield source.names[k], center_crop(source.load(k), SIZE)


def generated_rows(exported: Path, workspace: Path, count: int, seed: int) -> Path:
    """Return the folder of the rows that a generator is fed for images of its own.

    A calibration on this seed saves them; it has a workspace and a copy of the export of its own,
    so that the one that is measured keeps its samples.
    """
    shutil.copytree(exported, workspace / "export")
    options = CalibrateOptions(samples=count, seed=seed)
    with Workspace(workspace) as opened:
        return calibrate_stage(opened, options, QuietReporter()).folder / "samples"


def evaluation_sets(data: Path | None, names: Sequence[str], most: int) -> dict[str, ImageSource]:
    """Return held-out images by folder, at most `most` files each; else photographs."""
    found = {name: folder for name in names if (folder := data_folder(data, name))}
    specs = found or {"scikit-image": HELD_OUT_PHOTOGRAPHS}
    return {name: ImageSource(open_source(spec).files[:most]) for name, spec in specs.items()}


def random_tokenizer(config: CosmosConfig, seed: int) -> CosmosTokenizer:
    """Return a tokenizer with well-conditioned random weights, for figures at real width.

    Convolutions are N(0, 1 / fan_in) times a gain per output channel, exp(0.4 N(0, 1)); norm
    weights exp(0.5 N(0, 1)); biases zero.
    """
    generator = torch.Generator().manual_seed(seed)
    model = CosmosTokenizer(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                weight = torch.randn(module.weight.shape, generator=generator)
                gain = torch.exp(
                    GAIN_SPREAD * torch.randn(module.weight.shape[0], generator=generator)
                )
                fan_in = module.weight[0].numel()
                module.weight.copy_(weight * gain[:, None, None, None] / fan_in**0.5)
            elif isinstance(module, nn.GroupNorm):
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(torch.exp(NORM_SPREAD * noise))
            else:
                continue
            if module.bias is not None:
                module.bias.zero_()
    return model


def environment(threads: int) -> dict[str, Any]:
    """Return what figures depend on: processor, its flags, threads, versions."""
    cpu = read_cpu()
    return {
        "cpu": cpu.model,
        "flags": list(cpu.flags),
        "threads": threads,
        "python": platform.python_version(),
        **package_versions("onnxruntime", "onnx", "torch", "numpy"),
    }


def source_commit() -> str:
    """Return the commit that the code is of, and whether it was changed since."""
    options = ("--always", "--exclude=*", "--dirty=, changed", "--abbrev=7")
    git = ["git", "-C", str(RESULTS.parent), "describe", *options]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def environment_line(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in found.items() if k not in ("cpu", "flags"))
    return f"{found['cpu']} ({', '.join(found['flags'])}); {versions}"


def fixed(value: float, digits: int) -> str:
    """Return a number with so many decimals, where what rounds to zero has no sign.

    The format code for that, `z`, is of Python 3.11.
    """
    return f"{round(float(value), digits) + 0.0:.{digits}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write_results(stem: str, folder: Path, text: str, values: Mapping[str, Any]) -> None:
    """Write `STEM.md` and `STEM.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.md").write_text(text)
    (folder / f"{stem}.json").write_text(json.dumps(values, indent=2) + "\n")
