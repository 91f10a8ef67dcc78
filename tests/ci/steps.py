"""Runs the scripts of a CI file as its platform does, as far as one machine can."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from check_jsonschema import main as check_jsonschema
from click.testing import CliRunner

import arvg_trt

PACKAGE = Path(str(arvg_trt.__file__)).resolve().parent.parent
INSTALL = re.compile(r"python -m pip install .*")


@dataclass
class Platform:
    """A checkout, the variables that every script of it gets, and what the scripts printed."""

    checkout: Path
    tools: Path
    variables: dict[str, str]
    log: str = ""

    def bash(self, script: str, folder: Path, **more: str) -> int:
        """Run a script as the platforms do, in one bash that ends at an error; return its code."""
        path = f"{self.tools}{os.pathsep}{os.environ['PATH']}"
        kept = {"HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "ARVG_TRT_CACHE"} & set(os.environ)
        variables = {name: os.environ[name] for name in kept}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=folder,
            env={**variables, **self.variables, **more, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,  # against a hang, not for speed
            check=False,
        )
        self.log += done.stdout
        return done.returncode


def make_tools(folder: Path) -> Path:
    """A folder for PATH with `arvg-trt` and `python`, those of this test."""
    folder.mkdir()
    where = f'PYTHONPATH="{PACKAGE}" exec "{sys.executable}"'
    for name, words in (("arvg-trt", "-m arvg_trt"), ("python", "")):
        tool = folder / name
        tool.write_text(f'#!/bin/sh\n{where} {words} "$@"\n')
        tool.chmod(0o755)
    return folder


@dataclass
class GithubRun:
    """A run of a workflow: the scripts of its jobs, without the actions that they use.

    `used` are the steps that would use an action, whose `if` held.
    """

    platform: Platform
    event: dict[str, Any]
    secrets: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    needs: dict[str, dict[str, str]] = field(default_factory=dict)

    def job(self, workflow: dict[str, Any], name: str, folder: Path) -> bool | None:
        """Run a job; return whether all its steps succeeded, None for one that is skipped."""
        job = workflow["jobs"][name]
        if not self.holds(job.get("if", "success()"), True):
            return None
        succeeded, self.outputs = True, {}
        for step in job["steps"]:
            if not self.holds(step.get("if", "success()"), succeeded):
                continue
            if "uses" in step:
                self.used.append(step.get("name", step["uses"]))
                continue
            written = self.platform.tools.parent / "GITHUB_OUTPUT"
            written.write_text("")
            given = {key: self.filled(str(value)) for key, value in step.get("env", {}).items()}
            script = INSTALL.sub("true", self.filled(step["run"]))
            code = self.platform.bash(script, folder, **given, GITHUB_OUTPUT=str(written))
            self.outcomes[step["name"]] = code
            succeeded = succeeded and code == 0
            lines = written.read_text().splitlines()
            self.outputs[step.get("id", "")] = dict(line.split("=", 1) for line in lines)
        self.needs[name] = {
            key: self.filled(value) for key, value in job.get("outputs", {}).items()
        }
        return succeeded

    def value(self, expression: str) -> str:
        """A context's value, empty where there is none, as GitHub has it."""
        if text := re.fullmatch(r"'((?:[^']|'')*)'", expression):
            return text[1].replace("''", "'")
        found: Any = {
            "github": self.event,
            "secrets": self.secrets,
            "steps": {name: {"outputs": found} for name, found in self.outputs.items()},
            "needs": {name: {"outputs": found} for name, found in self.needs.items()},
        }
        for part in expression.strip().split("."):
            found = found.get(part, {}) if isinstance(found, dict) else {}
        return str(found) if found != {} else ""

    def filled(self, text: str) -> str:
        """A text with its expressions replaced; those here are single values."""
        return re.sub(r"\$\{\{ (.*?) \}\}", lambda found: self.value(found[1]), text)

    def holds(self, condition: str, succeeded: bool) -> bool:
        """Return whether a condition of the few forms that the workflow has is true."""
        parts = [part.strip() for part in condition.split("&&")]
        if "always()" not in parts and not succeeded:
            return False
        for part in parts:
            if part in ("always()", "success()"):
                continue
            left, right = part.split(" == ")
            if self.value(left) != self.value(right):
                return False
        return True


def check(schema: str, path: Path) -> None:
    """Check a file by a platform's own schema, which check-jsonschema brings."""
    result = CliRunner().invoke(check_jsonschema, ["--builtin-schema", schema, str(path)])
    assert result.exit_code == 0, result.output


def read_yaml(text: str) -> dict[str, Any]:
    """Parse a CI file; GitHub's `on` is no truth value."""
    found = yaml.safe_load(text)
    if True in found:
        found["on"] = found.pop(True)
    return found


def gitlab_script(job: dict[str, Any]) -> str:
    """The lines of a job's script in one, as GitLab's runner joins them."""
    return INSTALL.sub("true", "\n".join(job["script"]))
