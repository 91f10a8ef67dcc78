"""The workflow for GitHub: valid by its schema, and its scripts do what the page promises."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from arvg_trt.recipe.file import preset_names

from ..command_line import arvg, assert_refused
from .conftest import RECIPE, RECIPE_NAME
from .steps import GithubRun, Platform, check, read_yaml

EVENTS: dict[str, dict[str, Any]] = {
    "push": {"event_name": "push", "repository": "me/models", "sha": "b" * 40},
    "pull_request": {
        "event_name": "pull_request",
        "repository": "me/models",
        "token": "token-of-the-job",
        "event": {"pull_request": {"number": 7, "head": {"repo": {"full_name": "me/models"}}}},
    },
}
GH = r"""#!{python}
# Keeps comments in a file, as GitHub does, and knows the few calls that the workflow makes.
import json, os, re, subprocess, sys
store = {store!r}
comments = json.load(open(store))
words = sys.argv[1:]
assert words.pop(0) == "api" and os.environ["GH_TOKEN"] == "token-of-the-job"
method, field, query, paths = "GET", None, None, []
while words:
    word = words.pop(0)
    if word == "--method": method = words.pop(0)
    elif word == "--field": field = words.pop(0)
    elif word == "--jq": query = words.pop(0)
    elif not word.startswith("--"): paths.append(word)
(path,) = paths
if method == "GET":
    assert path == "repos/me/models/issues/7/comments"
    mine = re.fullmatch(r'\.\[\] \| select\(\.user\.login == "(.*)" and '
                        r'\(\.body \| startswith\(env\.MARKER\)\)\) \| \.id', query)
    for c in comments:
        if c["user"] == mine[1] and c["body"].startswith(os.environ["MARKER"]):
            print(c["id"])
else:
    key, _, file = field.partition("=@")
    assert key == "body"
    body = open(file).read()
    if method == "POST":
        assert path == "repos/me/models/issues/7/comments"
        comments.append({{"id": len(comments) + 1, "user": "github-actions[bot]", "body": body}})
    else:
        number = int(path.removeprefix("repos/me/models/issues/comments/"))
        comments[number - 1]["body"] = body
    json.dump(comments, open(store, "w"))
"""


def start(platform: Platform, event: str, **secrets: str) -> GithubRun:
    """A run of the workflow at an event."""
    summary = platform.tools.parent / f"summary-{event}.md"
    platform.variables = {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_REPOSITORY": "me/models"}
    return GithubRun(platform, EVENTS[event], secrets)


def workflow(*options: object) -> dict[str, Any]:
    """The workflow that the command writes of the repository's recipe, parsed."""
    outcome = arvg("ci", "github", RECIPE_NAME, *options)
    assert outcome.code == 0, outcome
    return read_yaml(outcome.out)


def test_the_schema_takes_what_is_written(repository: Path) -> None:
    path = repository / ".github" / "workflows" / "arvg-trt.yml"
    options = ("--bundle", "--runner", "self-hosted", "--runner", "gpu", "--branch", "release/1+x")
    outcome = arvg("ci", "github", RECIPE_NAME, "-o", path, *options, "--json")
    assert json.loads(outcome.out)["baseline"] == "baselines/it-s-mine.json"
    check("vendor.github-workflows", path)
    assert_refused(arvg("ci", "github", RECIPE_NAME, "-o", path), 9, "already", "--force")
    assert arvg("ci", "github", RECIPE_NAME, "-o", path, "--force").code == 0
    check("vendor.github-workflows", path)


def test_a_push_to_main_keeps_the_baseline_and_a_signed_bundle(
    repository: Path, platform: Platform
) -> None:
    assert arvg("keygen", platform.tools.parent / "ci").code == 0
    secret = (platform.tools.parent / "ci.key").read_text()
    found = workflow("--bundle")
    run = start(platform, "push", ARVG_TRT_KEY=secret)
    assert run.job(found, "validate", repository) is True, platform.log
    assert run.used[-2:] == ["Keep the baseline", "Keep the bundle"]
    assert "Keep the summary for the comment" not in run.used
    assert json.loads(Path("arvg-trt-ci/baseline.json").read_text())["name"] == "int8"
    verified = arvg(
        *("verify", "arvg-trt-ci/bundle.tar", "--require-key", platform.tools.parent / "ci.pub")
    )
    assert verified.code == 0 and "signed by" in verified.out
    assert secret.splitlines()[1] not in platform.log
    assert "# handmade, int8" in (platform.tools.parent / "summary-push.md").read_text()
    assert run.job(found, "comment", repository) is None

    (sign,) = (s for s in found["jobs"]["validate"]["steps"] if s.get("name") == "Sign the bundle")
    assert platform.bash(sign["run"], repository, SIGNING_KEY="") == 1
    assert "::error::set the secret ARVG_TRT_KEY" in platform.log


def test_a_pull_request_is_compared_and_gets_one_comment(
    repository: Path, platform: Platform, report: Path
) -> None:
    store = platform.tools.parent / "comments.json"
    marker = "<!-- arvg-trt handmade-int8 -->"
    store.write_text(json.dumps([{"id": 1, "user": "someone", "body": f"{marker} quoted"}]))
    gh = platform.tools / "gh"
    gh.write_text(GH.format(python=sys.executable, store=str(store)))
    gh.chmod(gh.stat().st_mode | stat.S_IXUSR)
    found = workflow()

    run = start(platform, "pull_request")
    assert run.job(found, "validate", repository) is True, platform.log
    assert "No baseline yet" in (platform.tools.parent / "summary-pull_request.md").read_text()
    assert run.job(found, "comment", repository) is None

    committed = Path("baselines/it-s-mine.json")
    assert arvg("baseline", "save", report, "-o", committed).code == 0
    better = json.loads(committed.read_text())
    for row in better["outputs"]["engine"]:
        row["sqnr_db"] += 10
        row["sums"]["noise"] = [noise / 10 for noise in row["sums"]["noise"]]
    committed.write_text(json.dumps(better))
    Path(RECIPE_NAME).write_text(RECIPE.replace(">=20", ">=200"))
    run = start(platform, "pull_request")
    assert run.job(found, "validate", repository) is False
    assert run.outcomes["Run the recipe"] == run.outcomes["Compare with the baseline"] == 8
    assert run.outcomes["Show the report"] == 0
    assert {"Keep the report, with JUnit", "Keep the summary for the comment"} <= set(run.used)
    assert "::error title=Gate failed::output_sqnr_db is" in platform.log
    summary = Path("arvg-trt-ci/summary.md")
    assert run.job(found, "comment", summary.parent) is True, platform.log
    first, mine = json.loads(store.read_text())
    assert first["body"].endswith("quoted")
    title = (
        "### Worse than the baseline in SQNR of the worst output; gate `output_sqnr_db>=200` failed"
    )
    assert mine["body"].startswith(f"{marker}\n{title}\n")

    summary.write_text(f"{marker}\nof a later push\n")
    assert run.job(found, "comment", summary.parent) is True, platform.log
    _, mine = json.loads(store.read_text())
    assert mine["body"].endswith("of a later push\n")


def test_a_run_that_makes_no_report_shows_none_of_an_earlier_run(
    repository: Path, platform: Platform
) -> None:
    Path(RECIPE_NAME).write_text(RECIPE.replace("samples = 8", "samples = 8\nlabels = '1'"))
    run = start(platform, "pull_request")
    assert run.job(workflow(), "validate", repository) is False
    assert run.outcomes["Run the recipe"] == 5
    assert "Show the report" not in run.outcomes
    assert "Keep the report, with JUnit" not in run.used


def test_permissions_are_the_least(repository: Path) -> None:
    found = workflow("--bundle")
    assert found["permissions"] == {"contents": "read"}
    assert "permissions" not in found["jobs"]["validate"]
    assert found["jobs"]["comment"]["permissions"] == {"pull-requests": "write"}
    steps = [step for job in found["jobs"].values() for step in job["steps"]]
    actions = {step["uses"].partition("@")[0] for step in steps if "uses" in step}
    assert {name.split("/")[0] for name in actions} == {"actions"}
    assert not [step for step in steps if "${{" in step.get("run", "")]  # no text becomes a script
    secret = [step["name"] for step in steps if "secrets." in json.dumps(step.get("env", {}))]
    assert secret == ["Sign the bundle"]


def test_the_cache_has_the_files_of_the_repository_in_its_key(repository: Path) -> None:
    steps = workflow()["jobs"]["validate"]["steps"]
    (cache,) = (s["with"] for s in steps if s.get("uses") == "actions/cache@v5")
    files = "'it''s mine.toml', 'handmade.onnx', 'calibration.npz', 'validation.npz'"
    assert cache["path"] == "out/my ws"
    assert cache["key"].endswith(f"@${{{{ hashFiles({files}) }}}}")
    assert cache["key"].startswith(cache["restore-keys"])


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_a_workflow_or_a_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = arvg("ci", "github", name)
    if outcome.code:
        assert_refused(outcome, 3, "not in this folder")
    else:
        assert f"arvg-trt run {name} || code=$?" in outcome.out
