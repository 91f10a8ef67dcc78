"""Fetch the files of a checkpoint from the Hugging Face Hub, and only those that are needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...errors import ExportError
from ...runtime.family import HubFile
from ...workspace.files import sha256_file
from .hub_network import hub_answers, quiet_client

CONFIGS = ("config.json", "config.yaml")
# Hears the task, and how many of how many megabytes are done.
Progress = Callable[[str, int, int], None]
MB = 1_000_000


class Unreachable(Exception):
    """Report that the Hub did not answer and a file is not in its cache."""


class NotCached(ExportError):
    """Refuse a checkpoint that the Hub's cache lacks, where the Hub is not there or not asked."""


def download_published(
    files: Sequence[HubFile], *, cached: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Return the weights of a published checkpoint, fetched where the Hub's cache lacks them.

    A fetch goes on where the connection broke, and complete files are kept. Those whose digest is
    known are compared with it. A configuration is fetched where its repository has one.

    Raises:
        ExportError: no access, no network and not cached, or a file is not what was published.
    """
    paths = []
    cached = cached or not hub_answers()
    for file in files:
        if file.name in CONFIGS:
            fetch_config(file.repo, file.name, cached)
            continue
        with hub_errors(file.repo):
            try:
                path = fetch(file.repo, file.name, cached, progress)
            except Unreachable as error:
                raise unreachable(file.repo) from error
        check_digest(file, path)
        paths.append(path)
    return paths


def check_digest(file: HubFile, path: Path) -> None:
    """Raise ExportError for a file that is not the published one."""
    if file.sha256 is None:
        return
    digest = sha256_file(path)
    if digest != file.sha256:
        raise ExportError(
            f"is not the file that was published: its sha256 is {digest[:16]}, not "
            f"{file.sha256[:16]}",
            where=str(path),
            do="remove it and fetch it again; a newer one is taken from a local folder",
        )


def download(
    repo: str,
    alternatives: Sequence[Sequence[str]],
    elsewhere: Mapping[str, str],
    *,
    cached: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Fetch the first complete set of files that a repository has, or its local cache.

    Raises:
        ExportError: no access, no network and not cached, or none of `alternatives` is there.
    """
    missed: Unreachable | None = None
    with hub_errors(repo):
        from huggingface_hub.errors import EntryNotFoundError

        cached = cached or not hub_answers()
        for names in alternatives:
            # Once the Hub did not answer, only its cache is asked: each attempt waits for retries.
            local = cached or missed is not None
            try:
                paths = [fetch(elsewhere.get(name, repo), name, local, progress) for name in names]
            except Unreachable as error:
                missed = error
                continue
            except EntryNotFoundError:
                continue
            for name in CONFIGS:  # they lie beside the first file
                fetch_config(repo, str(Path(names[0]).with_name(name)), local)
            return paths
    if missed is not None:
        raise unreachable(repo) from missed
    raise lacks_files(repo, alternatives)


def check_repository(
    repo: str,
    alternatives: Sequence[Sequence[str]],
    elsewhere: Mapping[str, str],
    published: Sequence[HubFile] = (),
) -> bool:
    """Return whether the Hub was asked for a checkpoint's files; none of them is fetched.

    Raises:
        ExportError: it has no such repository, not all files, or gives no access to them.
    """
    from huggingface_hub.errors import EntryNotFoundError

    if not hub_answers():
        return False
    if published and repo == published[0].repo:
        for file in published:
            if file.name not in CONFIGS:
                with hub_errors(file.repo):
                    ask(file.repo, file.name)
        return True
    with hub_errors(repo):
        for names in alternatives:
            with suppress(EntryNotFoundError):
                for name in names:
                    ask(elsewhere.get(name, repo), name)
                return True
    raise lacks_files(repo, alternatives)


def ask(repo: str, name: str) -> None:
    """Ask the Hub for the headers of a file; raises as its client does."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    get_hf_file_metadata(hf_hub_url(repo, name))


def fetch(repo: str, name: str, cached: bool, progress: Progress | None) -> Path:
    """Return a file of the Hub in its cache.

    Raises:
        Unreachable: it is not in the cache, and the Hub did not answer.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    named: dict[str, Any] = {}
    # Older versions draw bars of their own, on a terminal alone.
    if progress is not None and "tqdm_class" in inspect.signature(hf_hub_download).parameters:
        named["tqdm_class"] = reporting_bar(f"fetching {name}, MB", progress)
    try:
        return Path(hf_hub_download(repo, name, local_files_only=cached, **named))
    except LocalEntryNotFoundError as error:
        raise Unreachable(name) from error


def fetch_config(repo: str, name: str, cached: bool) -> None:
    """Fetch a configuration, which a repository need not have."""
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

    with hub_errors(repo), suppress(EntryNotFoundError, OfflineModeIsEnabled, Unreachable):
        fetch(repo, name, cached, None)


def reporting_bar(task: str, progress: Progress) -> type[Any]:
    """Return a class of progress bars that draw nothing, and report megabytes."""
    from tqdm import tqdm

    class Nowhere:
        def write(self, text: str) -> None: ...

        def flush(self) -> None: ...

    class Bar(tqdm):  # type: ignore[misc]  # tqdm comes without types
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **{**named, "file": Nowhere(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            drawn: bool | None = super().update(n)
            progress(task, int(self.n / MB), int((self.total or 0) / MB))
            return drawn

    return Bar


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line with what to do."""
    try:
        from huggingface_hub import constants

        # HTTPError is of the HTTP client that it uses, which differs by version.
        from huggingface_hub.errors import (  # type: ignore[attr-defined]
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            HTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise ExportError(
            "huggingface_hub is not installed", where=repo, do="pip install 'arvg-trt[export]'"
        ) from error
    try:
        with quiet_client():
            yield
    except HFValidationError as error:
        raise ExportError(
            f"is neither a file nor a Hugging Face id: {first_sentence(error)}",
            where=repo,
            do="check --checkpoint",
        ) from error
    except GatedRepoError as error:
        raise ExportError(
            "is gated",
            where=repo,
            do=f"accept its licence at {constants.ENDPOINT}/{repo} and run `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise ExportError(
            "no such repository, or a private one",
            where=repo,
            do="check the id, or run `hf auth login`",
        ) from error
    except EntryNotFoundError as error:
        raise ExportError(
            f"lacks a file that it had: {first_sentence(error)}",
            where=repo,
            do="give a local folder",
        ) from error
    except (OfflineModeIsEnabled, HfHubHTTPError, HTTPError, OSError) as error:
        raise ExportError(
            f"could not be downloaded: {first_sentence(error)}",
            where=repo,
            do="check the network, or give a local folder; finished files are kept",
        ) from error


def unreachable(repo: str) -> NotCached:
    """Return the error of a Hub that does not answer, or is not to be asked."""
    return NotCached(
        "the Hugging Face Hub cannot be reached and the files are not in its cache",
        where=repo,
        do=f"check the network, or name a folder that is here: {repo} is none",
    )


def lacks_files(repo: str, alternatives: Sequence[Sequence[str]]) -> ExportError:
    return ExportError(
        "has none of the expected files", where=repo, do=f"expected {listed(alternatives)}"
    )


def listed(alternatives: Sequence[Sequence[str]]) -> str:
    return ", or ".join(" with ".join(names) for names in alternatives)


def first_sentence(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:200]
