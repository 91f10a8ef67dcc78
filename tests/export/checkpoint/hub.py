"""A Hugging Face Hub on this machine, which answers as the real one does."""

from __future__ import annotations

import hashlib
import socket
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
        parts = self.path.split("/")
        status, code = codes[parts[2]] if len(parts) > 2 else (200, "")
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


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the Hub at an address where nothing answers."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def no_hub(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unplug(monkeypatch)


class Shelf(BaseHTTPRequestHandler):
    """Serves the files of `Served`, in ranges too, as the Hub does; a repository may be gated."""

    server: Served

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        parts = self.path.lstrip("/").split("/")
        repo, path = "/".join(parts[:2]), "/".join(parts[4:])  # OWNER/NAME/resolve/REVISION/FILE
        data = self.server.files.get((repo, path))
        start = int((self.headers.get("Range") or "bytes=0-")[len("bytes=") :].partition("-")[0])
        if body and data is not None:
            self.server.asked.append((repo, path, start))
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        end = len(data)
        if self.server.breaks_at is not None:  # once, as a network does
            end, self.server.breaks_at = self.server.breaks_at, None
            self.close_connection = True
        self.wfile.write(data[start:end])

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


class Served(ThreadingHTTPServer):
    """A hub with `files` by repository and name; `asked` are those whose bytes were wanted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Shelf)
        self.files: dict[tuple[str, str], bytes] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.breaks_at: int | None = None

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.asked]


@pytest.fixture
def served(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with Served() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
        server.shutdown()
        thread.join()
