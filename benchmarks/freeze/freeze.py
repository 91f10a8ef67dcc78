"""Prove that a refactoring changes no artefact: run the pipeline, digest every file it leaves.

    python -m arvg_trt.benchmarks.freeze --out before.txt       # before the change
    python -m arvg_trt.benchmarks.freeze --compare before.txt   # after it; exit code 1: they differ

The shipped minis and a custom ONNX go through export, calibrate, quantize, build and validate. Only
the command line is called, in processes of its own, so that every module may move. Digests hold
for one machine and one set of libraries: kernels and exporters of others give other bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from .models import CUSTOM, FORMATS, MODELS, save_custom

Digests = dict[str, str]
Run = Callable[..., int]  # of a command's arguments and a `refusal`, as `run_command`

WORKSPACE = "ws"
OF_ONE_FORMAT = ("quantize", "engines", "validate")  # folders that hold a folder a format
CANNOT_BUILD = 6  # the exit code of `build` where there is no such engine
TARGET = "sm89"  # target of TensorRT-RTX engines: the oldest GPU with FP8
LIBRARIES = (
    *("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx"),
    *("numpy", "scipy", "scikit-image", "pillow", "jinja2"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Define text that legitimately differs between two runs; it is cut before hashing."""

    files: str
    text: str
    reason: str


RULES = (
    Rule(r"(manifest|report)\.json", r'"versions": \{[^}]*\}', "versions of the libraries"),
    Rule(r"(manifest|report)\.json", r'"build_seconds": [0-9.e+-]+', "a duration"),
    Rule(r"times\.json", r"(?s).+", "durations and memory"),
    Rule(r"report\.json", r'"(cpu|environment)": \{[^}]*\}', "the processor and the system"),
    Rule(r"junit\.xml", r' time="[0-9.]+"|<property name="(version|processor)[^>]*>', "durations"),
    Rule(
        r"manifest\.json",
        r'"(report\.(json|html|md)|junit\.xml)": "[0-9a-f]{64}"',
        "of files with the above",
    ),
    Rule(r"report\.(html|md)", r"(Versions|CPU): [^\n<]*", "versions and the processor"),
    Rule(r"report\.html", r'<td class="number"[^>]*>[0-9.]+ s</td>', "a build's duration"),
    Rule(r"report\.md", r"\| [0-9.]+ s \|", "a build's duration"),
)


def normalized(path: Path) -> bytes:
    """Return the bytes of a file without the text that RULES let differ."""
    data = path.read_bytes()
    for rule in RULES:
        if re.fullmatch(rule.files, path.name):
            data = re.sub(rule.text.encode(), b"", data)
    return data


def digest_folder(root: Path) -> Digests:
    """Return the sha256 of every file below `root` by its relative path."""
    return {
        str(path.relative_to(root)): hashlib.sha256(normalized(path)).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def run_command(*arguments: object, refusal: int = 0) -> int:
    """Run a command of the tool; returns its exit code, which is 0 or `refusal`.

    Raises:
        click.ClickException: it ended with another one; has what it said.
    """
    start, words = time.monotonic(), [*map(str, arguments)]
    command = [sys.executable, "-m", "arvg_trt", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr.strip()[-2000:]
    if done.returncode not in (0, refusal):
        raise click.ClickException(f"{' '.join(words)}: exit {done.returncode}\n{said}")
    click.echo(f"{time.monotonic() - start:6.1f} s  {' '.join(words)}", err=True)
    if done.returncode:
        click.echo(f"          exit {done.returncode}: {said}", err=True)
    return done.returncode


def run_model(
    name: str,
    formats: Sequence[str],
    folder: Path,
    rtx: bool = False,
    run: Run = run_command,
) -> Digests:
    """Take one model through the stages in `folder`; returns digests by `MODEL/PATH`.

    The exit code of each build counts too: there are no engines of what ONNX Runtime's kernels
    lack (FP8), or compute too far from the Q/DQ graph on this processor.
    """
    model, workspace = MODELS[name], folder / WORKSPACE
    folder.mkdir(parents=True, exist_ok=True)
    if name == CUSTOM:
        save_custom(folder)

    def placed(arguments: Sequence[str]) -> list[str]:
        return [argument.format(folder=folder) for argument in arguments]

    kind, *options = placed(model.export)
    run("export", kind, workspace, *options)
    run("calibrate", workspace, *placed(model.calibrate))
    found: Digests = {}
    for chosen in formats:
        named = (workspace, "--name", chosen)
        run("quantize", *named, *model.options(chosen))
        code = run("build", *named, refusal=CANNOT_BUILD)
        digest = hashlib.sha256(f"{code}\n".encode()).hexdigest()
        found[f"engines/{chosen}/onnxruntime.exit-code"] = digest
        if rtx:
            run("build", *named, "--backend", "tensorrt_rtx", "--target", TARGET)
        run("validate", *named, *placed(model.validate), "--rounds", 0)
    found |= digest_folder(workspace)
    return {f"{name}/{path}": digest for path, digest in found.items()}


def is_part(path: str, models: Sequence[str], formats: Sequence[str]) -> bool:
    """Return whether a run of these models and formats makes this file."""
    model, *rest = path.split("/")
    return model in models and (rest[0] not in OF_ONE_FORMAT or rest[1] in formats)


def environment() -> list[str]:
    """Return lines on what digests depend on beside this package."""
    found = [f"python {platform.python_version()}", f"processors {os.cpu_count()}"]
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def write_digests(path: Path, digests: Digests) -> None:
    """Write `sha256  MODEL/PATH` lines, sorted by path, behind the environment as comments."""
    lines = [f"# {line}" for line in environment()]
    lines += [f"{digest}  {name}" for name, digest in sorted(digests.items())]
    path.write_text("\n".join(lines) + "\n")


def read_digests(path: Path) -> tuple[list[str], Digests]:
    """Return the environment and the digests of a file that `write_digests` wrote."""
    lines = path.read_text().splitlines()
    rows = [line.split("  ", 1) for line in lines if line and not line.startswith("#")]
    made_on = [line.removeprefix("# ") for line in lines if line.startswith("#")]
    return made_on, {name: digest for digest, name in rows}


def differences(before: Digests, after: Digests) -> list[str]:
    """Return a line for each file that differs, is missing or is additional."""
    found = []
    for name in sorted({*before, *after}):
        if name not in after:
            found.append(f"missing: {name}")
        elif name not in before:
            found.append(f"additional: {name}")
        elif before[name] != after[name]:
            found.append(f"differs: {name}")
    return found


def names_of(known: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a callback that reads a list with commas of `known` names."""

    def read(_: click.Context, __: click.Parameter, value: str) -> list[str]:
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


@contextlib.contextmanager
def scratch(kept: Path | None) -> Iterator[Path]:
    """Give the folder to work in: `kept`, or one that is removed."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default=",".join(MODELS), callback=names_of(list(MODELS)))
@click.option("--formats", default=",".join(FORMATS), callback=names_of(list(FORMATS)))
@click.option("--rtx", is_flag=True, help=f"Also build TensorRT-RTX engines, for {TARGET}.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the digests here.")
@click.option(
    "--compare", type=click.Path(exists=True, path_type=Path), help="Digests to compare with."
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="A new folder for the workspaces, which stay."
)
def main(
    models: list[str],
    formats: list[str],
    rtx: bool,
    out: Path | None,
    compare: Path | None,
    keep: Path | None,
) -> None:
    """Digest every artefact of a run; with --compare exit with 1 where one is not the same."""
    if out is None and compare is None:
        raise click.UsageError("give --out, --compare or both")
    if keep is not None and keep.exists():
        raise click.UsageError(f"{keep} exists: what is in it would be skipped as up to date")
    digests: Digests = {}
    with scratch(keep) as folder:
        for name in models:
            digests |= run_model(name, formats, folder.absolute() / name, rtx)
    if out is not None:
        write_digests(out, digests)
    if compare is None:
        return
    made_on, before = read_digests(compare)
    for line in sorted({*made_on} ^ {*environment()}):
        click.echo(f"only one of both: {line}", err=True)
    before = {name: value for name, value in before.items() if is_part(name, models, formats)}
    found = differences(before, digests)
    click.echo("\n".join(found) if found else f"{len(digests)} files, all the same")
    sys.exit(1 if found else 0)
