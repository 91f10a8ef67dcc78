"""What the export of a model is given, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..export.var_form import DYNAMIC, VarForm
from ..runtime.image_sources import ImageSource
from ..runtime.images import FloatImage, center_crop, to_model
from .common import Reporter

if TYPE_CHECKING:
    from ..export.zoo import ZooEntry

PARITY_IMAGES = 2
STEPS = 3


@dataclass(frozen=True, slots=True)
class ExportJob:
    """The model, the files of its checkpoint, images to compare on, and where progress goes.

    `form` is how a generator's graphs are made.
    """

    entry: ZooEntry
    spec: str
    paths: tuple[Path, ...]
    source: ImageSource
    reporter: Reporter
    form: VarForm = DYNAMIC

    @property
    def images(self) -> tuple[Path, ...]:
        return self.source.files[:PARITY_IMAGES]

    def inputs(self) -> tuple[Path, ...]:
        """Every file that decides the outputs; a `config.json` lies beside the weights."""
        beside = self.paths[0].parent / "config.json"
        return (*self.paths, *([beside] if beside.is_file() else []), *self.images)

    def pictures(self, size: int) -> list[FloatImage]:
        """The images' centres, [1, 3, size, size] in [-1, 1]."""
        chosen = (self.source.load(i) for i in range(len(self.images)))
        return [to_model(center_crop(image, size)) for image in chosen]

    def progress(self, task: str, done: int) -> None:
        self.reporter.progress(task, done, STEPS)
