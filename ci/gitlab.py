"""Write a job of GitLab CI that runs a recipe, compares it and notes it at the merge request."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

from .job import Job, JobOptions
from .text import fill, shell_word, yaml_text

ROOT_FILE = ".gitlab-ci.yml"
SLUG = 63  # characters of CI_COMMIT_REF_SLUG


def gitlab_job(job: Job, options: JobOptions, command: str, include: str | None) -> str:
    """Return the text of a file with the job; `command` wrote it, to `include` or to stdout."""
    name = f"arvg-trt-{job.slug}"
    prefix = f"arvg-trt-{job.version}-{job.slug}"
    run = " ".join(map(shell_word, job.run_words))
    notes = [*job.notes]
    if include not in (None, ROOT_FILE):
        notes.insert(0, f"{ROOT_FILE} includes it by `include: {include}`.")
    values = {
        "command": command,
        "version": job.version,
        "notes": "\n".join(f"# {note}" for note in notes),
        "job": name,
        "image": yaml_text(f"python:{options.python}"),
        "runner": f"[{', '.join(map(yaml_text, options.runners))}]",
        "on_branch": yaml_text(f"$CI_COMMIT_BRANCH == {json.dumps(options.branch)}"),
        "cache_key": yaml_text(f"{prefix}-$CI_COMMIT_REF_SLUG"),
        "fallback_key": yaml_text(f"{prefix}-{ref_slug(options.branch)}"),
        "workspace": yaml_text(f"{job.workspace}/"),
        "workspace_word": shell_word(job.workspace),
        "install": yaml_text(" ".join(["python -m pip install", *map(shell_word, job.packages)])),
        "run": yaml_text(f"{run} || code=$?"),
        "copy": yaml_text(f"cp -R {shell_word(job.report)} arvg-trt-ci/report"),
        "name": shell_word(job.name),
        "baseline": shell_word(job.baseline),
        "branch_url": quote(options.branch, safe=""),
    }
    chosen = {"tags": bool(options.runners), "hub": job.from_hub, "bundle": options.bundle}
    return fill("gitlab.yml", values, {name for name, is_so in chosen.items() if is_so})


def ref_slug(branch: str) -> str:
    """Return the name of a branch as GitLab writes it into CI_COMMIT_REF_SLUG."""
    return re.sub(r"[^a-z0-9]", "-", branch.lower())[:SLUG].strip("-")
