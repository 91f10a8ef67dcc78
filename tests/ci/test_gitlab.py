"""The job for GitLab: valid by its schema, and its script does what the page promises."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ..command_line import arvg
from .conftest import RECIPE_NAME
from .steps import Platform, check, gitlab_script, read_yaml

MARKER = "<!-- arvg-trt handmade-int8 -->"
TOKEN = "glpat-a-token-of-the-project"


class Api(ThreadingHTTPServer):
    """Answers as GitLab's API does to the calls of the job: one artefact, and notes."""

    notes: list[dict[str, Any]]
    baseline: bytes | None
    asked: list[tuple[str, str]]


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("JOB-TOKEN", "")))
        if self.path == (
            "/projects/5/jobs/artifacts/main/raw/arvg-trt-ci/baseline.json?job=arvg-trt-it-s-mine"
        ):
            self.answer(404 if self.server.baseline is None else 200, self.server.baseline or b"")
        else:
            assert self.path == "/projects/5/merge_requests/7/notes?per_page=100"
            self.answer(200, json.dumps(self.server.notes).encode())

    def do_POST(self) -> None:
        assert self.path == "/projects/5/merge_requests/7/notes"
        self.server.notes.insert(0, {"id": len(self.server.notes) + 1, "body": self.body()})
        self.answer(201, b"{}")

    def do_PUT(self) -> None:
        number = int(self.path.removeprefix("/projects/5/merge_requests/7/notes/"))
        (note,) = (note for note in self.server.notes if note["id"] == number)
        note["body"] = self.body()
        self.answer(200, b"{}")

    def body(self) -> str:
        """The field `body` of a form that curl sent."""
        assert self.headers["PRIVATE-TOKEN"] == TOKEN
        content = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = BytesParser(EmailMessage, policy=default).parsebytes(head + content)
        (part,) = message.iter_parts()
        return part.get_payload(decode=True).decode().replace("\r\n", "\n")

    def answer(self, code: int, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api(("127.0.0.1", 0), Handler) as server:
        server.notes, server.baseline, server.asked = [], None, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def job(*options: object) -> dict[str, Any]:
    outcome = arvg("ci", "gitlab", RECIPE_NAME, *options)
    assert outcome.code == 0, outcome
    return read_yaml(outcome.out)["arvg-trt-it-s-mine"]


def merge_request(api: Api, **more: str) -> dict[str, str]:
    """The variables of a pipeline of a merge request."""
    return {
        "CI_MERGE_REQUEST_IID": "7",
        "CI_MERGE_REQUEST_PROJECT_ID": "5",
        "CI_API_V4_URL": f"http://127.0.0.1:{api.server_port}",
        "CI_JOB_TOKEN": "a-token-of-the-job",
        **more,
    }


def test_the_schema_takes_what_is_written(repository: Path) -> None:
    path = repository / ".gitlab-ci.yml"
    options = ("--bundle", "--runner", "gpu", "--branch", "release/1+x", "--python", "3.12")
    assert arvg("ci", "gitlab", RECIPE_NAME, "-o", path, *options).out == f"{path}\n"
    check("vendor.gitlab-ci", path)
    (found,) = read_yaml(path.read_text()).values()
    assert found["image"] == "python:3.12" and found["tags"] == ["gpu"]
    assert found["rules"][1]["if"] == '$CI_COMMIT_BRANCH == "release/1+x"'
    assert found["cache"]["fallback_keys"][0].endswith("-release-1-x")
    assert "artifacts/release%2F1%2Bx/raw/" in gitlab_script(found)
    included = repository / "ci" / "job.yml"
    assert arvg("ci", "gitlab", RECIPE_NAME, "-o", "ci/job.yml").code == 0
    assert "`include: ci/job.yml`" in included.read_text()
    check("vendor.gitlab-ci", included)


def test_a_pipeline_of_main_keeps_the_baseline_and_a_signed_bundle(
    repository: Path, platform: Platform
) -> None:
    key = platform.tools.parent / "ci"
    assert arvg("keygen", key).code == 0
    script = gitlab_script(job("--bundle"))
    assert platform.bash(script, repository, ARVG_TRT_KEY=f"{key}.key") == 0, platform.log
    assert {path.name for path in Path("arvg-trt-ci").iterdir()} == {
        *("baseline.json", "bundle.tar", "report")
    }
    assert Path("arvg-trt-ci/report/junit.xml").is_file()
    verified = arvg("verify", "arvg-trt-ci/bundle.tar", "--require-key", f"{key}.pub")
    assert verified.code == 0 and "signed by" in verified.out


def test_a_merge_request_is_compared_and_gets_one_note(
    repository: Path, platform: Platform, report: Path, api: Api
) -> None:
    script = gitlab_script(job())
    platform.variables = merge_request(api)
    assert platform.bash(script, repository) == 0, platform.log
    assert "No baseline yet" in platform.log and api.asked[0][1] == "a-token-of-the-job"
    assert not Path("arvg-trt-ci/main.json").exists()

    better = json.loads(report.read_text())
    for row in better["outputs"]["engine"]:
        row["sqnr_db"] += 10
        row["sums"]["noise"] = [noise / 10 for noise in row["sums"]["noise"]]
    api.baseline = json.dumps(better).encode()
    api.notes = [{"id": 1, "body": f"> {MARKER}"}]
    up_to_date = script.replace("arvg-trt run", "true")
    assert up_to_date != script
    for notes in (2, 2):  # the second push writes over the note of the first
        platform.bash("rm -rf arvg-trt-ci", repository)
        assert platform.bash(up_to_date, repository, ARVG_TRT_TOKEN=TOKEN) == 8, platform.log
        assert len(api.notes) == notes
        assert api.notes[0]["body"].startswith(f"{MARKER}\n### Worse than the baseline in SQNR")
        assert api.notes[1]["body"] == f"> {MARKER}"
    assert TOKEN not in platform.log
    assert api.notes[0]["body"] == Path("arvg-trt-ci/summary.md").read_text()


def test_a_note_that_cannot_be_written_fails_no_job(
    repository: Path, platform: Platform, report: Path, api: Api
) -> None:
    assert arvg("baseline", "save", report, "-o", "baselines/it-s-mine.json").code == 0
    platform.variables = merge_request(api, ARVG_TRT_TOKEN=TOKEN)
    platform.variables["CI_API_V4_URL"] = "http://127.0.0.1:9"  # nobody listens
    script = gitlab_script(job()).replace("arvg-trt run", "true")
    assert platform.bash(script, repository) == 0, platform.log
    assert "The note of the merge request was not written." in platform.log
