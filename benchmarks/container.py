"""Try a Dockerfile where there is no Docker: its lines run by chroot, and the image is weighed.

    python -m arvg_trt.benchmarks.container --base DIR --tokenizer TAR --generator TAR --image PNG

Needs root, both bundles, a wheel in dist/ (`make wheels`), and Debian's base system in a folder
(`debootstrap --variant=minbase bookworm DIR`). Each stage of the file begins with a copy of the
base; RUN, COPY, ENV, USER and WORKDIR do what they do in Docker. The slim base that the Dockerfile
names is smaller than this one: it has no documentation and fewer languages.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from .common import (
    RESULTS,
    environment,
    environment_line,
    markdown_table,
    source_commit,
    write_results,
)

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "containers" / "cpu" / "Dockerfile"
# What a build needs of this machine's network, and the image does not keep.
NETWORK = ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt")
USUAL_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
WORK = "/work"
EXISTING = click.Path(path_type=Path, exists=True)


@dataclass(frozen=True, slots=True)
class Step:
    """Hold an instruction of a Dockerfile, such as RUN, and the words behind it as one line."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Hold the steps behind one FROM."""

    base: str
    name: str
    steps: tuple[Step, ...]


@dataclass(slots=True)
class Image:
    """Hold what Docker keeps of a stage: its files, environment, user, folder and command."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entry: tuple[str, ...] = ()

    def run(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the image, with /proc and nothing else of this machine."""
        mount, chroot, unshare = map(tool, ("mount", "chroot", "unshare"))
        who = f"--userspec={self.user}:{self.user}"
        entered = [chroot, who, str(self.root), "/usr/bin/env", "-C", self.folder, *words]
        inner = f"{mount} -t proc proc {self.root}/proc && exec {shlex.join(entered)}"
        home = "/root" if self.user == "root" else f"/home/{self.user}"
        environment = {"PATH": USUAL_PATH, "HOME": home, **self.environment}
        outer = [unshare, "--mount", "/bin/sh", "-c", inner]
        return subprocess.run(outer, env=environment, capture_output=True, text=True)


def tool(name: str) -> str:
    """Return the path of a program of this machine; it ends without one."""
    path = shutil.which(name)
    if path is None:
        raise click.ClickException(f"{name} is not installed")
    return path


def read_dockerfile(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile; lines that end with a backslash are joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    stages: list[tuple[str, str, list[Step]]] = []
    for line in filter(str.strip, joined.splitlines()):
        name, _, rest = line.strip().partition(" ")
        words = " ".join(rest.split())
        if name == "FROM":
            base, _, alias = words.partition(" AS ")
            stages.append((base, alias, []))
        else:
            stages[-1][2].append(Step(name, words))
    return [Stage(base, alias, tuple(steps)) for base, alias, steps in stages]


def make_image(stages: Sequence[Stage], base: Path, context: Path, folder: Path) -> Image:
    """Run all stages and return the last; every stage begins with a copy of `base`."""
    made: dict[str, Image] = {}
    image = Image(base)
    for k, stage in enumerate(stages):
        image = made[stage.name] = Image(folder / f"stage{k}")
        subprocess.run(["cp", "-a", str(base), str(image.root)], check=True)
        for step in stage.steps:
            click.echo(f"{step.name} {step.text}", err=True)
            take_step(step, image, made, context)
    return image


def take_step(step: Step, image: Image, made: Mapping[str, Image], context: Path) -> None:
    """Do what one instruction says."""
    if step.name == "RUN":
        run_shell(image, step.text)
    elif step.name == "COPY":
        copy(step.text.split(), image, made, context)
    elif step.name == "ENV":
        name, _, value = step.text.partition("=")
        image.environment[name] = value
    elif step.name == "USER":
        image.user = step.text
    elif step.name == "WORKDIR":
        image.folder = step.text
        (image.root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif step.name == "ENTRYPOINT":
        image.entry = tuple(json.loads(step.text))
    elif step.name != "CMD":
        raise click.ClickException(f"{step.name} is not known here")


def run_shell(image: Image, text: str) -> None:
    """Run a line of shell as root with this machine's network, of which no file stays."""
    kept = {name: image.root / name.lstrip("/") for name in NETWORK}
    before = {name: path.read_bytes() for name, path in kept.items() if path.is_file()}
    paths = ssl.get_default_verify_paths()
    sources = (Path(NETWORK[0]), Path(os.environ.get("SSL_CERT_FILE") or paths.cafile or ""))
    for target, source in zip(kept.values(), sources, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    done = image.run(["PIP_CERT=" + NETWORK[1], "/bin/sh", "-ec", text])
    for name, target in kept.items():
        if name in before:
            target.write_bytes(before[name])
        elif name == NETWORK[0]:
            target.unlink()
    if done.returncode:
        raise click.ClickException(f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def copy(words: Sequence[str], image: Image, made: Mapping[str, Image], context: Path) -> None:
    """Copy files of the context, or of an earlier stage; a folder is copied as its contents."""
    source = context
    if words[0].startswith("--from="):
        source, words = made[words[0].removeprefix("--from=")].root, words[1:]
    *patterns, to = words
    target = image.root / to.lstrip("/")
    for pattern in patterns:
        found = sorted(source.glob(pattern.lstrip("/")))
        if not found:
            raise click.ClickException(f"COPY {pattern}: no such file")
        for path in found:
            if path.is_dir():
                subprocess.run(["cp", "-a", str(path), str(target)], check=True)
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target / path.name)


def megabytes(path: Path) -> float:
    """Return the disk that a folder takes, in units of 10^6 bytes."""
    words = ["du", "--summarize", "--one-file-system", "--block-size=1", str(path)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0]) / 1e6


@dataclass(frozen=True, slots=True)
class Command:
    """Hold a command that ran in the image, its seconds, and its last line."""

    command: str
    seconds: float
    says: str


def try_commands(image: Image, files: Mapping[str, Path]) -> Iterator[Command]:
    """Run what the container is for, as its user, by its entry point."""
    work = image.root / WORK.lstrip("/")
    for path in files.values():
        shutil.copy(path, work / path.name)
    subprocess.run(["chown", "-R", "1000:1000", str(work)], check=True)
    tokenizer, generator, picture = (path.name for path in files.values())
    for text in (
        f"verify {tokenizer}",
        f"verify {generator}",
        f"encode {tokenizer} {picture} -o tokens.npz",
        f"decode {tokenizer} tokens.npz -o decoded/",
        f"generate {generator} --labels 3,7 --count 1 --seed 0 -o images/",
    ):
        start = time.perf_counter()
        done = image.run([*image.entry, *text.split()])
        seconds = time.perf_counter() - start
        if done.returncode:
            raise click.ClickException(f"{text}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        yield Command(text, seconds, (done.stdout.strip().splitlines() or [""])[-1])


@dataclass(frozen=True, slots=True)
class Measured:
    """Hold megabytes (10^6 bytes) on disk: the base, the whole image, and what it installed."""

    base: float
    image: float
    installed: float
    largest: dict[str, float]
    user: str
    commands: tuple[Command, ...]


def measure(base: Path, files: Mapping[str, Path], folder: Path) -> Measured:
    """Make the image, weigh it, and run its commands."""
    image = make_image(read_dockerfile(DOCKERFILE.read_text("utf-8")), base, ROOT, folder)
    site = next(image.root.glob("opt/arvg-trt/lib/python3*/site-packages"))
    weights = {path.name: megabytes(path) for path in site.iterdir()}
    heaviest = sorted(weights, key=lambda name: -weights[name])[:6]
    whole, installed = megabytes(image.root), megabytes(image.root / "opt" / "arvg-trt")
    commands = tuple(try_commands(image, files))
    return Measured(
        base=megabytes(base),
        image=whole,
        installed=installed,
        largest={name: weights[name] for name in heaviest},
        user=image.run(["/usr/bin/id"]).stdout.strip(),
        commands=commands,
    )


def text_of(found: Measured, machine: str) -> str:
    """Return the measurement as a page of Markdown."""
    rows = [[f"`{c.command}`", f"{c.seconds:.2f}", c.says] for c in found.commands]
    largest = ", ".join(f"{name} {size:.0f} MB" for name, size in found.largest.items())
    lines = [
        "# The CPU container",
        "",
        f"`python -m arvg_trt.benchmarks.container`, {machine}. Not by Docker: the lines of "
        "`containers/cpu/Dockerfile`, run by chroot on Debian's minimal base system.",
        "",
        f"The image takes {found.image:.0f} MB on disk, {found.installed:.0f} of them the Python "
        f"environment, whose largest parts are {largest}. The base system alone takes "
        f"{found.base:.0f} MB, with the lists of packages that the image does not keep. "
        f"Commands ran as `{found.user}`, each with the start of Python.",
        "",
        markdown_table(["command", "seconds", "its last line"], rows),
        "",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--base", required=True, type=EXISTING, help="Debian's base system in a folder.")
@click.option("--tokenizer", required=True, type=EXISTING, help="A bundle of a tokenizer.")
@click.option("--generator", required=True, type=EXISTING, help="A bundle of a generator.")
@click.option("--image", "picture", required=True, type=EXISTING, help="An image to encode.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(base: Path, tokenizer: Path, generator: Path, picture: Path, out: Path) -> None:
    """Run the lines of the Dockerfile, measure, print a table, and write it to OUT."""
    if os.geteuid():
        raise click.ClickException("chroot needs root")
    files = {"tokenizer": tokenizer, "generator": generator, "image": picture}
    with tempfile.TemporaryDirectory() as folder:
        found = measure(base, files, Path(folder))
    machine = environment(threads=0)
    text = text_of(found, environment_line(machine))
    values = asdict(found) | {"environment": machine} | {"commit": source_commit()}
    write_results("container", out, text, values)
    click.echo(text)


if __name__ == "__main__":
    main()
