"""Write a workflow of GitHub Actions that runs a recipe, compares it and comments on it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from .job import Job, JobOptions
from .text import fill, shell_word, yaml_text

_GLOB = re.compile(r"[*?\[]")
_BRANCH_PATTERN = re.compile(r"[+!]")  # what a branch's name may hold and a filter reads otherwise


def github_workflow(job: Job, options: JobOptions, command: str) -> str:
    """Return the text of a workflow file; `command` is what wrote it."""
    # No slug has an @, so that the prefix of one recipe is none of another.
    prefix = f"arvg-trt-{job.version}-{job.slug}@"
    hosted = "ubuntu-latest"
    runners = [yaml_text(label) for label in options.runners] or [hosted]
    chosen = {
        "large_files": job.large_files,
        "hub": job.from_hub,
        "login": job.login,
        "bundle": options.bundle,
    }
    values = {
        "command": literal(command),
        "version": job.version,
        "notes": "\n".join(f"# {literal(note)}" for note in job.notes),
        "title": yaml_text(f"arvg-trt {job.slug}"),
        "branch": yaml_text(_BRANCH_PATTERN.sub(r"\\\g<0>", options.branch)),
        "runner": runners[0] if len(runners) == 1 else f"[{', '.join(runners)}]",
        "comment_runner": hosted if hosted in runners or len(runners) > 1 else runners[0],
        "python": yaml_text(options.python),
        "requirement": " ".join(map(word, job.packages)),
        "workspace": yaml_text(job.workspace),
        "workspace_path": job.workspace,
        "workspace_word": word(job.workspace),
        "cache_key": yaml_text(prefix + cache_digest(job)),
        "cache_prefix": yaml_text(prefix),
        "baseline_prefix": f"arvg-trt-baseline-{job.slug}@",
        "run": " ".join(map(word, job.run_words)),
        "baseline": word(job.baseline),
        "report": word(job.report),
        "report_yaml": yaml_text(job.report),
        "name": word(job.name),
        "artifact": f"arvg-trt-{job.slug}",
    }
    return fill("github.yml", values, {name for name, is_so in chosen.items() if is_so})


def literal(text: str) -> str:
    """Return a text in which GitHub evaluates nothing."""
    return text.replace("${{", "${{ '${{' }}")


def word(text: str) -> str:
    """Return one word of a shell, in a script in which GitHub evaluates nothing."""
    return literal(shell_word(text))


def cache_digest(job: Job) -> str:
    """Return the end of a cache's key: of the preset, and of what the repository has."""
    patterns = [*job.files, *(f"{folder}/**" for folder in job.folders)]
    listed = ", ".join(quoted(pattern) for pattern in patterns)
    digests = [job.digest] if job.digest else []
    digests += [f"${{{{ hashFiles({listed}) }}}}"] if patterns else []
    return "-".join(digests)


def quoted(path: str) -> str:
    """Return a path as a text of an expression; only the end of a folder's is a pattern."""
    folder = "/**" if path.endswith("/**") else ""
    plain = _GLOB.sub(r"[\g<0>]", str(PurePosixPath(path.removesuffix("/**"))))
    return "'" + (plain + folder).replace("'", "''") + "'"
