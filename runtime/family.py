"""Define a family of models as one object: its variants, and where its own code is.

What needs more than msgspec and numpy is named, as `module:object`, and imported when it is used:
listing models needs neither torch nor a session.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ArvgError
from .spec import GeneratorSpec

if TYPE_CHECKING:
    from ..workspace.facts import ModelKind
    from .loop import Loop, OpenSession

PACKAGE = __name__.partition(".")[0]
FileSets = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class HubFile:
    """Name a file of a published checkpoint, and what public documents say of it.

    `bytes` are exact where `sha256` is known, else as the Hub's pages round them. `license` is an
    SPDX identifier, or the name of other terms. `login` says whether they have to be accepted by a
    user who is logged in. None is unknown.
    """

    repo: str
    name: str
    bytes: int | None = None
    sha256: str | None = None
    license: str | None = None
    login: bool | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """Describe a model that is known by name: its configuration, and the files of its checkpoint.

    `files` lists the sets of file names that make a complete checkpoint, best first. `parameters`
    of a generator are those of its transformer, by which it is named. A variant without a
    configuration takes any size of its family. `hub` is where it is published; `elsewhere` names
    the Hub repositories of files that are not in `hub`. `published` are the files that are fetched
    from there, one of the sets of `files`.
    """

    name: str
    family: str
    parameters: int
    config: Any | None
    files: FileSets
    hub: str | None = None
    graphs: tuple[str, ...] = ("encoder", "decoder")
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    published: tuple[HubFile, ...] = ()

    @property
    def download_bytes(self) -> int | None:
        """Return how much is fetched of a published checkpoint; None where a size is unknown."""
        sizes = [file.bytes for file in self.published if file.bytes is not None]
        return sum(sizes) if sizes and len(sizes) == len(self.published) else None


@dataclass(frozen=True, slots=True)
class Family:
    """Hold everything that the rest of the package asks about a family of models.

    Attributes:
        variants: the models that are known by name.
        unsized: the variant that takes any size of the family, by the family's name.
        spec: what `generator.json` says; None: images are encoded and decoded, not generated.
        loop: `module:class` of the schedule, called with folder, spec, session and threads.
        exporter: `module:class` of an `Exporter` (`families/base.py`), which needs torch; of the
            user's own graphs, a function of workspace, files and reporter that prepares it.
        snapshots: of `files` those sets that a trainer leaves, whose names do not tell the size.
        evaluated: the weights of a trainer's snapshot that the official evaluation takes.
        source: what is exported, a checkpoint or the user's own ONNX graphs.
    """

    name: str
    variants: tuple[Variant, ...] = ()
    unsized: Variant | None = None
    spec: type[GeneratorSpec] | None = None
    loop: str = ""
    exporter: str = ""
    snapshots: FileSets = ()
    evaluated: Literal["ema", "model"] = "ema"
    source: Literal["checkpoint", "graphs"] = "checkpoint"

    @property
    def generates(self) -> bool:
        """Return whether the family makes images of classes."""
        return self.spec is not None

    @property
    def kind(self) -> ModelKind:
        """Return the kind of all models of the family."""
        if self.source == "graphs":
            return "custom"
        return "generator" if self.generates else "tokenizer"

    @property
    def models(self) -> tuple[Variant, ...]:
        """Return all models that can be exported by name."""
        return (*self.variants, *((self.unsized,) if self.unsized is not None else ()))

    def open_loop(
        self, folder: Path, spec: GeneratorSpec, session: OpenSession, threads: int
    ) -> Loop:
        """Open the graphs of a folder for the family's schedule.

        Raises:
            BundleError: a graph is missing or does not load.
        """
        loop: Loop = self._load(self.loop)(folder, spec, session, threads)
        return loop

    def load_exporter(self) -> Any:
        """Import and return the family's `Exporter`."""
        exporter = self._load(self.exporter)
        return exporter() if self.source == "checkpoint" else exporter

    def _load(self, reference: str) -> Any:
        return load_named(reference, f"family {self.name}: {reference}")


def load_named(reference: str, where: str) -> Any:
    """Import and return what a `module:object` names.

    Raises:
        ArvgError: it is of another package, and does not import; `where` is what names it.
    """
    try:
        return pkgutil.resolve_name(reference)
    # An error while another package is imported is reported as an error of that package.
    except Exception as error:
        if reference.startswith(f"{PACKAGE}."):
            raise
        words = str(error).splitlines() or [""]
        raise ArvgError(
            f"does not import: {type(error).__name__}: {words[0]}",
            where=where,
            do="install that package again, or uninstall it",
        ) from error
