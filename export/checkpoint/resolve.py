"""Find a model's checkpoint: a file, a folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import ExportError, bounded
from ...runtime.family import HubFile
from .hub import Progress, download, download_published, listed

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (".safetensors", ".jit", *PICKLE_SUFFIXES)
HUB_PAGE = re.compile(r"https?://huggingface\.co/([\w.-]+/[\w.-]+)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_checkpoint(
    spec: str,
    alternatives: Sequence[Sequence[str]],
    elsewhere: Mapping[str, str] | None = None,
    published: Sequence[HubFile] = (),
    *,
    cached: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Return the files of a checkpoint: `spec` is a file, a folder or a Hugging Face id.

    `alternatives` lists the sets of file names that make a complete checkpoint, best first;
    `elsewhere` says which of them lie in another repository of the Hub. Of the repository that a
    model is `published` in, exactly these files are fetched. A folder without these names may have
    one file, or one of a transformer and one of a tokenizer, of any name. With `cached` nothing is
    fetched; `progress` hears what is.

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
    if not is_hub_id(spec):
        page = HUB_PAGE.match(spec)
        given = f"give a Hugging Face id: {page[1]}" if page else "or give a Hugging Face id"
        raise ExportError(
            "no such file or folder",
            where=spec,
            do=given if page else f"check --checkpoint, {given}",
        )
    if published and spec == published[0].repo:
        return download_published(published, cached=cached, progress=progress)
    return download(spec, alternatives, elsewhere or {}, cached=cached, progress=progress)


def require_enough(paths: Sequence[Path], model: str, parameters: int) -> None:
    """Raise ExportError for files with less than a byte for each number of a model of this size.

    For a family that checks no keys; else the first that does not fit says more.
    """
    size = sum(path.stat().st_size for path in paths)
    if size < parameters:
        raise ExportError(
            f"has {size / 1e6:.1f} MB, too few for the {parameters:,} numbers of {model}",
            where=str(paths[0].parent if len(paths) > 1 else paths[0]),
            do="check --checkpoint, or name the model that it is of",
        )


def is_hub_id(spec: str) -> bool:
    """Return whether a text that names no file here is one that the Hub may know."""
    path = Path(spec)
    is_file_name = path.suffix in SUFFIXES
    local = path.exists() or path.parent.is_dir()
    return bool(HUB_ID.fullmatch(spec)) and not is_file_name and not local


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
    held = [f"{path.name} holds {content[path]}" for path in files]
    raise ExportError(
        f"has no complete checkpoint: {bounded(held, 'files', 8)}",
        where=str(folder),
        do=f"keep one transformer and one tokenizer in it; {expected}",
    )
