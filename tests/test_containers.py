"""The container files: what they install is what the project knows, and what they run exists."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement

from arvg_trt.benchmarks.container import DOCKERFILE, Stage, Step, read_dockerfile
from arvg_trt.cli import cli
from arvg_trt.release.distributions import project_version

from .test_rooms import ROOT

FOLDER = DOCKERFILE.parent
PROJECT = msgspec.toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
STAGES = read_dockerfile(DOCKERFILE.read_text("utf-8"))
DEBIAN = {"ca-certificates", "python3", "python3-venv"}
INSTRUCTIONS = {"RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}


def steps(name: str) -> list[Step]:
    return [step for stage in STAGES for step in stage.steps if step.name == name]


def commands() -> list[list[str]]:
    """Every command of every RUN, as words."""
    return [part.split() for step in steps("RUN") for part in step.text.split(" && ")]


def requirements(texts: list[str]) -> dict[str, Requirement]:
    return {r.name: r for r in map(Requirement, texts)}


def test_a_dockerfile_is_read_as_docker_reads_it() -> None:
    text = "# no\nFROM a:b AS one\nRUN x \\\n # no\n && y \\\n  --z\n\nCOPY a b\nFROM c\nUSER  u\n"
    assert read_dockerfile(text) == [
        Stage("a:b", "one", (Step("RUN", "x && y --z"), Step("COPY", "a b"))),
        Stage("c", "", (Step("USER", "u"),)),
    ]


def test_both_stages_begin_with_one_base_and_hold_known_instructions() -> None:
    assert [stage.base for stage in STAGES] == ["debian:bookworm-slim"] * 2
    assert {step.name for stage in STAGES for step in stage.steps} == INSTRUCTIONS


def test_the_last_stage_runs_the_projects_command_as_a_user_without_rights() -> None:
    (entry,), (arguments,), (user,) = steps("ENTRYPOINT"), steps("CMD"), steps("USER")
    last = STAGES[-1].steps
    assert {entry, arguments, user} <= set(last)
    assert json.loads(entry.text) == list(PROJECT["scripts"]) == ["arvg-trt"]
    assert json.loads(arguments.text) == ["--help"]
    assert user.text != "root"
    made = [words for words in commands() if words[0] == "useradd"]
    assert [words[-1] for words in made] == [user.text]
    path = next(step.text for step in steps("ENV") if step.text.startswith("PATH="))
    assert path.removeprefix("PATH=").split(":")[0] == "/opt/arvg-trt/bin"


def test_only_known_packages_of_debian_are_installed() -> None:
    installed = [words for words in commands() if words[:2] == ["apt-get", "install"]]
    assert len(installed) == 2
    for words in installed:
        assert words[2:4] == ["-y", "--no-install-recommends"]
        assert "python3" in words[4:] and set(words[4:]) <= DEBIAN


def test_requirements_are_those_of_the_project_with_one_onnxruntime_for_all() -> None:
    lines = (FOLDER / "requirements.txt").read_text("utf-8").splitlines()
    listed = requirements([line for line in lines if line and not line.startswith("#")])
    wanted = requirements([t for t in PROJECT["dependencies"] if "onnxruntime" not in t])
    both = [t for t in PROJECT["dependencies"] if t.startswith("onnxruntime")]
    specifiers = {str(requirement.specifier) for requirement in requirements(both).values()}
    assert set(requirements(both)) == {"onnxruntime", "onnxruntime-gpu"}
    assert {str(listed.pop("onnxruntime").specifier)} == specifiers
    assert {n: str(r) for n, r in listed.items()} == {n: str(r) for n, r in wanted.items()}


def test_pip_installs_the_list_with_constraints_and_then_the_wheel_alone() -> None:
    copied = next(step.text.split() for step in steps("COPY"))
    *files, target = copied
    assert files == ["constraints.txt", "containers/cpu/requirements.txt", "dist/arvg_trt-*.whl"]
    assert all((ROOT / name).is_file() for name in files[:2])
    wheel = f"dist/arvg_trt-{project_version(ROOT)}-py3-none-any.whl"
    assert fnmatch.fnmatch(wheel, files[2])
    installs = [words for words in commands() if "install" in words and "pip" in words[0]]
    first, second = (words[words.index("install") + 1 :] for words in installs)
    assert first == [
        *("--no-cache-dir", "-c", f"{target}constraints.txt", "-r", f"{target}requirements.txt")
    ]
    assert second == ["--no-cache-dir", "--no-deps", f"{target}arvg_trt-*.whl"]


def test_one_release_of_onnxruntime_is_pinned_for_every_machine() -> None:
    pins = re.findall(
        r"^onnxruntime(?:-gpu)?==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M
    )
    assert len(pins) == 2 and len(set(pins)) == 1


def test_docker_is_sent_what_is_copied_and_nothing_else() -> None:
    ignored = Path(f"{DOCKERFILE}.dockerignore").read_text("utf-8").split()
    copied = steps("COPY")[0].text.split()[:-1]
    assert ignored == ["*", *(f"!{name}" for name in copied)]


@pytest.mark.parametrize("page", ["docs/edge.md", "containers/cpu/Dockerfile"])
def test_commands_that_are_shown_for_the_container_exist(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    shown = re.findall(r"docker run .*? arvg-trt(?::\S+)? (\w+)", text)
    assert shown and set(shown) <= set(cli.commands)


def test_the_page_of_devices_names_the_same_packages() -> None:
    """For a reader of the wheel, which has no file of the container."""
    text = (ROOT / "docs" / "edge.md").read_text("utf-8")
    (line,) = re.findall(r"`pip install (click [^`]+)`", text)
    lines = (FOLDER / "requirements.txt").read_text("utf-8").splitlines()
    wanted = requirements([each for each in lines if not each.startswith("#")])
    assert set(line.split()) == {name for name, each in wanted.items() if each.marker is None}
