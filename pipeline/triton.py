"""`bundle --layout triton`: a model repository that Triton Inference Server serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..workspace.facts import Exported, known_name, model_name
from ..workspace.stage import Reporter
from ..workspace.workspace import Workspace
from .bundle import license_texts

LICENSE = "LICENSE"  # begins the names of terms: a folder of them would be a model to the server


class RepositoryResult(msgspec.Struct, frozen=True, kw_only=True):
    """Name the models and ensembles that were written, and the groups that are not served."""

    written: tuple[Path, ...]
    bytes: int
    groups: tuple[str, ...]
    left_out: tuple[str, ...]
    models: tuple[str, ...]
    ensembles: tuple[str, ...]


def write_triton(
    workspace: Workspace,
    name: str,
    output: Path,
    reporter: Reporter,
    *,
    groups: Sequence[str] = (),
    max_batch: int,
    licenses: Sequence[Path] = (),
) -> RepositoryResult:
    """Write the engines of a quantization as a Triton model repository, to a new folder.

    `groups` are those served, by default all that Triton can; `max_batch` is of CPU models.

    Raises:
        WorkspaceError: there are no engines that Triton serves, a group that it does not, two
            licences of one name, or the folder is there already.
    """
    from ..engines.bundle.contents import engine_groups
    from ..engines.bundle.triton import README, describe_repository, write_repository
    from ..engines.bundle.triton_readme import left_out_text, repository_readme

    exported = Exported.open(workspace)
    model = model_name(exported.manifest)
    made = engine_groups(workspace, name)
    repository = describe_repository(workspace, name, made, groups, max_batch)
    if not groups and repository.left_out:
        reporter.warn(left_out_text(repository.left_out))
    texts = license_texts(known_name(exported.manifest), licenses)
    terms = {f"{LICENSE}-{file}": text for file, text in texts.items()}
    if not terms:
        reporter.warn("no licence of the weights is beside the models: give --license FILE")
    page = repository_readme(repository, model, name, exported.kind, list(terms))
    write_repository(output, repository, {README: page.encode(), **terms})
    return RepositoryResult(
        written=(output,),
        bytes=sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
        groups=tuple(group.name for group in repository.groups),
        left_out=tuple(group.name for group in repository.left_out),
        models=tuple(each.name for each in repository.models),
        ensembles=tuple(each.name for each in repository.ensembles),
    )
