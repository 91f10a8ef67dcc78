"""Whatever names hold, the files say these names to YAML and to shells."""

from __future__ import annotations

import shlex
import string

import pytest
import yaml  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from arvg_trt.ci.github import cache_digest, github_workflow, literal
from arvg_trt.ci.gitlab import gitlab_job
from arvg_trt.ci.job import Job, JobOptions
from arvg_trt.ci.text import require_printable, yaml_text
from arvg_trt.errors import RecipeError

from .steps import gitlab_script, read_yaml

PRINTABLE = st.text(
    st.one_of(st.sampled_from(string.punctuation + " ${}'\"\\#:-"), st.characters()), min_size=1
).filter(str.isprintable)


def made(recipe: str, package: str, workspace: str = "out/ws") -> Job:
    """A job of a recipe of that name."""
    return Job(
        recipe=recipe,
        digest="",
        slug="slug",
        name="int8",
        workspace=workspace,
        moved=True,
        requirement=package,
        version="1.0",
        files=(recipe,),
        folders=(),
        from_hub=True,
        login=True,
        large_files=True,
        notes=(f"Its runner has to have {recipe}.",),
        weights=None,
    )


@given(PRINTABLE)
def test_yaml_reads_the_text_back(text: str) -> None:
    assert yaml.safe_load(f"a: {yaml_text(text)}\nb: 1\n") == {"a": text, "b": 1}
    assert yaml.safe_load(f"- {yaml_text(text)}\n") == [text]
    if not set(text) & set('?|= $"'):  # those are not in lists of one line unquoted
        assert yaml.safe_load(f"[{yaml_text(text)}, b]") == [text, "b"]


@given(PRINTABLE, PRINTABLE)
def test_github_reads_the_words_back(recipe: str, package: str) -> None:
    options = JobOptions(runners=(recipe, package), bundle=True)
    found = read_yaml(github_workflow(made(recipe, package), options, recipe))
    validate = found["jobs"]["validate"]
    assert validate["runs-on"] == [recipe, package]
    scripts = {step.get("name"): step.get("run") for step in validate["steps"]}
    install = unfilled(scripts["Install arvg-trt, with PyTorch for the CPU"]).splitlines()[1]
    assert shlex.split(install) == ["python", "-m", "pip", "install", package]
    run = unfilled(scripts["Run the recipe"]).splitlines()[1].removesuffix(" || code=$?")
    assert shlex.split(run) == ["arvg-trt", "run", "--workspace", "out/ws", recipe]
    (step,) = (s for s in validate["steps"] if s.get("name") == "Restore the workspace")
    assert step["with"]["path"].splitlines()[0] == "out/ws"


def unfilled(text: str) -> str:
    """Return a script as GitHub hands it to a shell: all expressions in it are texts."""
    return text.replace("${{ '${{' }}", "${{")


@given(PRINTABLE)
def test_github_evaluates_nothing_of_a_name(text: str) -> None:
    assert unfilled(literal(text)) == text
    assert "${{" not in literal(text).replace("${{ '${{' }}", "")
    pattern = cache_digest(made(text, "x"))
    inner = pattern.removeprefix("${{ hashFiles('").removesuffix("') }}")
    assert "'" not in inner.replace("''", "")


@given(PRINTABLE, PRINTABLE)
def test_gitlab_reads_the_words_back(recipe: str, package: str) -> None:
    options = JobOptions(runners=(recipe,), bundle=True)
    found = read_yaml(gitlab_job(made(recipe, package), options, recipe, "a.yml"))
    job = found["arvg-trt-slug"]
    assert job["tags"] == [recipe]
    assert job["script"][1] == f"python -m pip install {shlex.quote(package)}"
    assert shlex.split(job["script"][4].removesuffix(" || code=$?"))[-1] == recipe
    assert gitlab_script(job).endswith('exit "$code"')


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "a\x7f", "a\u2028b", "\ud800", "a\u200bb"])
def test_what_cannot_be_shown_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="cannot be shown"):
        require_printable(text, "the recipe")
