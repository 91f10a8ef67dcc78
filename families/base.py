"""Define `Family`, its `Variant`s, and the `Exporter` behind them.

Importing this needs no torch. A family's package has a `FAMILY`, which `runtime.registry` finds by
name; its exporter is imported where torch is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ExportError
from ..export.shape import DYNAMIC, ExportShape
from ..runtime.family import Family, FileSets, HubFile, Variant

if TYPE_CHECKING:
    from ..export.facts import CheckpointFacts
    from .shared.job import ExportJob
    from .shared.torch_graphs import TorchGraph

__all__ = ["Exporter", "Family", "FileSets", "HubFile", "Variant", "unsized_variant"]


class Exporter(ABC):
    """Write the graphs of a checkpoint and compare them with PyTorch.

    Attributes:
        part: what the family's own tensors are, in words: "a VAR transformer".
    """

    part: ClassVar[str] = "another model"

    def check_shape(self, name: str, form: ExportShape) -> None:
        """Check that the model `name` can have graphs of this shape; here only the default.

        Raises:
            ExportError: it cannot.
        """
        if form != DYNAMIC:
            raise ExportError(
                "is no generator: it has no fixed batch and no KV caches",
                where=name,
                do="leave out --static-batch and --kv-type",
            )

    @abstractmethod
    def export(self, job: ExportJob, folder: Path) -> CheckpointFacts:
        """Write everything that the export leaves; return the manifest's results.

        Raises:
            ExportError: the checkpoint does not fit, or a difference above the tolerance.
        """

    def check(self, job: ExportJob) -> None:
        """Check that the checkpoint is of the job's model, as `export` would; here nothing.

        A job of `shapes_only` reads names and shapes alone.

        Raises:
            ExportError: keys, shapes, sizes or halves that do not fit.
        """
        return

    def load_part(self, job: ExportJob, tensors: dict[str, Any]) -> Any:
        """Return the configuration of `part`, loaded from a checkpoint; here never.

        Raises:
            ExportError: they do not have it.
        """
        raise ExportError(f"is not {self.part}", where=job.spec, do="name another model")

    def torch_graphs(self, job: ExportJob) -> Mapping[str, TorchGraph]:
        """Load the checkpoint, and return what computes graphs in PyTorch, by their names.

        Here none: a family that has them says so.

        Raises:
            ExportError: the checkpoint does not fit.
        """
        return {}


def unsized_variant(family: str, partner: str, variants: Sequence[Variant]) -> Variant:
    """Return a family's variant without a size: its configuration comes from the checkpoint.

    `partner` is the other model of the checkpoint. Files of both models come before a trainer's
    snapshot, as they do in `variants`.
    """
    plain = ("model.safetensors", f"{partner}.safetensors")
    found = dict.fromkeys((plain, *(files for entry in variants for files in entry.files)))
    files = tuple(sorted(found, key=len, reverse=True))
    return Variant(family, family, 0, None, files, graphs=variants[0].graphs)
