"""Open what quantization reads of a calibrated workspace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from ..graph.sites import SiteMap, load_sites, split_graphs
from ..runtime.folders import read_spec
from ..samples.files import DECODER_SAMPLES, SAMPLES
from ..workspace.facts import kind_of, manifest_value
from ..workspace.manifest import Manifest
from ..workspace.stage import require_outputs
from ..workspace.workspace import Workspace

if TYPE_CHECKING:
    from .calibration_run import CalibrationRun
    from .observers.run import Progress

Batch = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Hold what quantization reads of a workspace."""

    export: Path
    exported: Manifest
    calibrate: Path
    calibrated: Manifest
    site_map: SiteMap

    @classmethod
    def open(cls, workspace: Workspace) -> Calibrated:
        """Open the export and the calibration of a workspace.

        Raises:
            WorkspaceError: a stage was not run, or the statistics are of another export.
        """
        export, exported = require_outputs(workspace, "export", stage="export")
        calibrate, calibrated = require_outputs(workspace, "calibrate", stage="calibrate")
        return cls(export, exported, calibrate, calibrated, load_sites(export))

    @property
    def generates(self) -> bool:
        return kind_of(self.exported) == "generator"

    @property
    def planned(self) -> SiteMap:
        """Return the sites that a plan has; other graphs of a generator share theirs."""
        return self.site_map.calibrated

    @property
    def split(self) -> tuple[SiteMap, SiteMap]:
        """Return what is fed the model's samples, and what has samples of its own.

        The second is a generator's image decoder; other models have no such graph.
        """
        if not self.generates:
            return self.site_map, msgspec.structs.replace(self.site_map, graphs=(), sites=())
        return split_graphs(self.site_map, read_spec(self.export)[1].calibrated_graphs)

    @property
    def decoder(self) -> str | None:
        """Return the name of a generator's image decoder, if the method takes it."""
        return next(iter(self.split[1].graphs), None)

    @property
    def batch_size(self) -> int:
        """Return the number of samples in flight, as calibration had them."""
        return manifest_value(self.calibrated, "options", "batch_size", Batch)

    @property
    def samples(self) -> Path:
        return self.calibrate / SAMPLES

    @property
    def digests(self) -> dict[str, str]:
        return self.exported.as_inputs() | self.calibrated.as_inputs()

    def run(self, progress: Progress, export: Path | None = None) -> CalibrationRun:
        """Return a run of the graphs that are fed the model's samples, in `export`.

        None: the FP32 ones.
        """
        from .calibration_run import CalibrationRun

        folder = self.export if export is None else export
        return CalibrationRun(folder, self.samples, self.split[0].graphs, self.batch_size, progress)

    def run_apart(self, progress: Progress, export: Path | None = None) -> CalibrationRun:
        """Return the same run of the graphs that have samples of their own."""
        run = self.run(progress, export)
        # A sample of a fixed batch is a batch.
        size = 1 if read_spec(self.export)[1].static_batch else self.batch_size
        folder, graphs = self.calibrate / DECODER_SAMPLES, self.split[1].graphs
        return replace(run, samples=folder, graphs=graphs, batch_size=size)
