"""A Hugging Face Hub on this machine, which answers as the real one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

WIDTH = 24


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does for a gated, a missing and an unrelated repository."""

    def do_HEAD(self) -> None:
        codes = {
            "gated": (403, "GatedRepo"),
            "gone": (404, "RepoNotFound"),
            "other": (404, "EntryNotFound"),
        }
        status, code = codes[self.path.split("/")[2]]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        # The Hub names the commit when the file alone is missing.
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def hub(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield
        server.shutdown()
        thread.join()
