"""Find a model's checkpoint: a file, a folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import ExportError

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
CONFIGS = ("config.json", "config.yaml")
SUFFIXES = (".safetensors", ".jit", *PICKLE_SUFFIXES)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_checkpoint(
    spec: str, alternatives: Sequence[Sequence[str]], elsewhere: Mapping[str, str] | None = None
) -> list[Path]:
    """Return the files of a checkpoint: `spec` is a file, a folder or a Hugging Face id.

    `alternatives` lists the sets of file names that make a complete checkpoint, best first;
    `elsewhere` says which of them lie in another repository of the Hub. A folder without these
    names may have one file, or one of a transformer and one of a tokenizer, of any name.

    Raises:
        ExportError: nothing there, or not a complete set; says what was expected.
    """
    path = Path(spec)
    if path.is_file():
        return [path]
    if path.is_dir():
        for names in alternatives:
            if all((path / name).is_file() for name in names):
                return [path / name for name in names]
        return find_by_content(path, alternatives)
    is_file_name = path.suffix in SUFFIXES
    if HUB_ID.fullmatch(spec) and not is_file_name and not path.parent.is_dir():
        return download(spec, alternatives, elsewhere or {})
    raise ExportError(
        "no such file or folder", where=spec, do="check --checkpoint, or give a Hugging Face id"
    )


def find_by_content(folder: Path, alternatives: Sequence[Sequence[str]]) -> list[Path]:
    """Return the only file of a folder, or its transformer and tokenizer, told by their keys.

    Raises:
        ExportError: no file, or several that do not make one pair; says what each holds.
    """
    files = [p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES and p.is_file()]
    parts = {name for names in alternatives if len(names) > 1 for name in names}
    if len(files) == 1 and not (files[0].suffix == ".jit" and files[0].name in parts):
        return files
    expected = f"expected {listed(alternatives)}"
    if not files or len(alternatives[0]) == 1:
        raise ExportError("has no complete checkpoint", where=str(folder), do=expected)
    from .read import parts_of

    content = {path: parts_of(path) for path in files}
    by_part = [[p for p in files if content[p] == part] for part in ("transformer", "tokenizer")]
    if all(len(found) == 1 for found in by_part):
        return [found[0] for found in by_part]
    whole = [p for p in files if content[p] == "transformer and tokenizer"]
    if len(whole) == 1 and not any(by_part):
        return whole
    raise ExportError(
        "has no complete checkpoint: " + ", ".join(f"{p.name} holds {content[p]}" for p in files),
        where=str(folder),
        do=f"keep one transformer and one tokenizer in it; {expected}",
    )


def listed(alternatives: Sequence[Sequence[str]]) -> str:
    return ", or ".join(" with ".join(names) for names in alternatives)


def download(
    repo: str, alternatives: Sequence[Sequence[str]], elsewhere: Mapping[str, str]
) -> list[Path]:
    """Fetch a checkpoint from the Hugging Face Hub (or its local cache).

    Raises:
        ExportError: no access, no network and not cached, or none of `alternatives` is there.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError as error:
        raise ExportError(
            "huggingface_hub is not installed", where=repo, do="pip install 'arvg-trt[export]'"
        ) from error
    unreachable: LocalEntryNotFoundError | None = None
    for names in alternatives:
        # Once the Hub did not answer, only its cache is asked: each attempt waits for retries.
        cached = unreachable is not None
        try:
            paths = [
                Path(hf_hub_download(elsewhere.get(name, repo), name, local_files_only=cached))
                for name in names
            ]
            for name in CONFIGS:  # they lie beside the first file
                beside = str(Path(names[0]).with_name(name))
                with suppress(EntryNotFoundError, OfflineModeIsEnabled):
                    hf_hub_download(repo, beside, local_files_only=cached)
            return paths
        except HFValidationError as error:
            raise ExportError(
                f"is neither a file nor a Hugging Face id: {first_sentence(error)}",
                where=repo,
                do="check --checkpoint",
            ) from error
        except LocalEntryNotFoundError as error:
            unreachable = error
        except EntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise ExportError(
                "is gated", where=repo, do="accept its licence on the Hub and run `hf auth login`"
            ) from error
        except RepositoryNotFoundError as error:
            raise ExportError(
                "no such repository, or a private one", where=repo, do="check the id, or log in"
            ) from error
        except (OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
            raise ExportError(
                f"could not be downloaded: {first_sentence(error)}",
                where=repo,
                do="check the network, or give a local folder",
            ) from error
    if unreachable is not None:
        raise ExportError(
            "the Hugging Face Hub cannot be reached and the files are not in its cache",
            where=repo,
            do="check the network, or give a local folder",
        ) from unreachable
    raise ExportError(
        "has none of the expected files", where=repo, do=f"expected {listed(alternatives)}"
    )


def first_sentence(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:200]
